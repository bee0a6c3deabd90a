"""Exit rules: after a layer, which rows stop?

Each rule is the `exit_rule` slot of a policy: it reads a `LayerView` and
answers with a stop flag and a confidence per row. The depth loop ends every
row at the last layer whatever a rule says, and calls `step` only at layers
where `looks(layer)`; a `looks` that is a plain Python False leaves the whole
check out of the compiled program.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.exits.measured_exit import MeasuredExit
from calm_jax.interfaces import LayeredDecoder, LayerView, StatelessSlot
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class NeverExit(StatelessSlot):
  """Never fires: every token takes every layer. The null object."""

  needs_logits = False

  def looks(self, layer: Array | int) -> bool:
    """Returns False: no layer is looked at."""
    del layer
    return False

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Returns state, no stops and NaN."""
    never = jnp.zeros(view.active.shape, bool)
    return state, never, _no_confidence(view)


@register_pytree
@dataclasses.dataclass(frozen=True)
class FixedExit:
  """Fires when the row has used its number of layers: the static baseline.

  Attributes:
    exit_layer: int [] or [B], in 1..L.
  """

  exit_layer: Array | int

  needs_logits = False

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with an int32 leaf; raises ValueError outside 1..L."""
    del max_length
    exit_layer = _checked_layers(
      self.exit_layer, 'exit_layer', decoder, ((), (batch_size,))
    )
    return FixedExit(exit_layer)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the exit layer of each row, int32 [B]."""
    del decoder, max_length
    return jnp.broadcast_to(self.exit_layer, (batch_size,))

  def looks(self, layer: Array | int) -> bool:
    """Returns True: any layer may be some row's last."""
    del layer
    return True

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Stops rows whose layers are used up; confidence is NaN."""
    return state, view.layer + 1 >= state, _no_confidence(view)


@register_pytree
@dataclasses.dataclass(frozen=True)
class ScheduledExit:
  """Fires when the row has used the layers its schedule gives the position.

  Attributes:
    exit_layers: int [T] or [B, T], in 1..L; T at least the maximum length.
  """

  exit_layers: Array

  needs_logits = False

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with an int32 leaf; raises ValueError on bad layers."""
    length = jnp.shape(self.exit_layers)[-1:]
    if not length or length[0] < max_length:
      raise ValueError(
        f'exit_layers has shape {list(jnp.shape(self.exit_layers))}; give one '
        f'layer for each of the {max_length} positions, [T] or [B, T]'
      )
    exit_layers = _checked_layers(
      self.exit_layers, 'exit_layers', decoder, (length, (batch_size, *length))
    )
    return ScheduledExit(exit_layers)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the schedule of each row, int32 [B, T]."""
    del decoder
    schedule = self.exit_layers[..., :max_length]
    return jnp.broadcast_to(schedule, (batch_size, max_length))

  def looks(self, layer: Array | int) -> bool:
    """Returns True: any layer may be some row's last."""
    del layer
    return True

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Stops rows whose layers are used up; confidence is NaN."""
    due = jnp.take_along_axis(state, view.positions[:, None], axis=1)[:, 0]
    return state, view.layer + 1 >= due, _no_confidence(view)


@register_pytree
@dataclasses.dataclass(frozen=True)
class ConfidenceExit(MeasuredExit):
  """Fires when the confidence reaches the threshold (arXiv 2207.07061).

  Stops row i after a layer when c_i >= threshold_i(position), compared in
  float32. It looks after exit layers minimum_exit_layer, minimum_exit_layer +
  interval, ... that the measure can speak about.
  """

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the threshold with its numbers repeated per row."""
    return self.threshold.init(decoder, batch_size, max_length)

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Stops rows whose confidence reaches their threshold."""
    confidence = self.measure.confidence(view).astype(jnp.float32)
    return state, confidence >= state.at(view.positions), confidence


def _checked_layers(value, name, decoder, shapes) -> Array:
  """Checks exit layers against 1..L."""
  return checks.checked_array(
    value,
    name,
    shapes=shapes,
    low=1,
    high=decoder.num_layers,
    dtype=jnp.int32,
    remedy=f'this decoder has {decoder.num_layers} layers, counted from 1',
  )


def _no_confidence(view: LayerView) -> Array:
  """Returns NaN for every row: the rule did not measure anything."""
  return jnp.full(view.active.shape, jnp.nan, jnp.float32)

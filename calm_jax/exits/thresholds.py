"""How high a confidence must be for a token to stop, position by position.

A threshold has `check` and `init` like a policy slot; its state is itself with
every number repeated per row, and `state.at(positions)` gives the threshold of
each row. A value of 1.0 or more always means "never stop" (+inf): a confidence
saturated at 1.0 would pass a threshold of 1, and Eq. 5 takes 1 below 1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

_MOST = float(jnp.finfo(jnp.float32).max)

# Field name: smallest and largest allowed number, and what to do instead.
_LIMITS = {
  'value': (0.0, 1.0, 'give a threshold in [0, 1], where 1.0 means never exit'),
  'temperature': (0.0, _MOST, 'give 0 for no decay or a positive number'),
  'max_length': (1.0, _MOST, 'give N of Eq. 5, the longest output in tokens'),
}


@dataclasses.dataclass(frozen=True)
class _Threshold:
  """What all thresholds share: numbers within `_LIMITS`, repeated per row."""

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with float32 numbers; raises ValueError on bad ones."""
    del decoder
    given = self.at_output_length(max_length)
    numbers = {}
    for field in dataclasses.fields(self):
      low, high, remedy = _LIMITS[field.name]
      numbers[field.name] = checks.checked_array(
        getattr(given, field.name),
        'threshold' if field.name == 'value' else f'threshold {field.name}',
        shapes=((), (batch_size,)),
        low=low,
        high=high,
        remedy=remedy,
      )
    return dataclasses.replace(self, **numbers)

  def at_output_length(self, max_length: int):
    """Returns itself for outputs of a length, if it left the length open."""
    if getattr(self, 'max_length', max_length) is not None:
      return self
    return dataclasses.replace(self, max_length=max_length)

  def init(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with every number repeated per row."""
    del decoder, max_length
    return jax.tree.map(
      lambda number: jnp.broadcast_to(number, (batch_size,)), self
    )


@register_pytree
@dataclasses.dataclass(frozen=True)
class ConstantThreshold(_Threshold):
  """The same threshold at every position.

  Attributes:
    value: [] or [B], in [0, 1]; 1.0 means never.
  """

  value: Array | float

  def at(self, positions: Array) -> Array:
    """Returns the threshold, float32 [B], at int32 `positions` [B]."""
    del positions
    return _or_never(self.value, self.value)


@register_pytree
@dataclasses.dataclass(frozen=True)
class DecayingThreshold(_Threshold):
  """Eq. 5 of the paper: strict at the first tokens, laxer later.

    clip_[0,1](0.9 value + 0.1 exp(-temperature * position / max_length))

  Early mistakes cost more because later tokens are conditioned on them. With
  temperature 0 this is 0.9 value + 0.1, not value.

  Attributes:
    value: lambda, [] or [B], in [0, 1]; 1.0 means never, at every position.
    temperature: tau >= 0, [] or [B]; the paper takes 4 with softmax and
      classifier confidences on CNN/DM and WMT and 0 elsewhere.
    max_length: N >= 1, [] or [B], the maximum output length in tokens; None for
      that of the decode (in jobs, of the run). Give it where decodes of several
      lengths should do the same.
  """

  value: Array | float
  temperature: Array | float = dataclasses.field(kw_only=True)
  max_length: Array | float | None = dataclasses.field(
    kw_only=True, default=None
  )

  def at(self, positions: Array) -> Array:
    """Returns the threshold, float32 [B], at int32 `positions` [B]."""
    decay = _decay(self.temperature, positions, self.max_length)
    threshold = jnp.clip(0.9 * self.value + 0.1 * decay, 0.0, 1.0)
    return _or_never(self.value, threshold)


@register_pytree
@dataclasses.dataclass(frozen=True)
class ReleaseDecayThreshold(_Threshold):
  """The decay as the official release's code has it, which is not Eq. 5.

    value * (0.9 + 0.1 exp(-temperature * position / max_length))

  (t5x/contrib/calm; there the position never reaches it.) For comparison.

  Attributes:
    value: lambda, [] or [B], in [0, 1]; 1.0 means never, at every position.
    temperature: tau >= 0, [] or [B].
    max_length: N >= 1, [] or [B], the maximum output length in tokens; None for
      that of the decode.
  """

  value: Array | float
  temperature: Array | float = dataclasses.field(kw_only=True)
  max_length: Array | float | None = dataclasses.field(
    kw_only=True, default=None
  )

  def at(self, positions: Array) -> Array:
    """Returns the threshold, float32 [B], at int32 `positions` [B]."""
    decay = _decay(self.temperature, positions, self.max_length)
    return _or_never(self.value, self.value * (0.9 + 0.1 * decay))


def _decay(
  temperature: Array | float, positions: Array, max_length: Array | float | None
) -> Array:
  """Returns exp(-temperature * position / max_length)."""
  if max_length is None:
    raise ValueError(
      'the threshold has no max_length, N of Eq. 5; at_output_length gives it '
      'the length of the outputs'
    )
  return jnp.exp(-temperature * positions / max_length)


def _or_never(value: Array | float, threshold: Array | float) -> Array:
  """Replaces a threshold by +inf where the value asks never to stop."""
  return jnp.where(value >= 1.0, jnp.inf, threshold).astype(jnp.float32)

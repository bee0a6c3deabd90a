"""Patience (PABEE, arXiv 2006.04152): stop when the token no longer changes."""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exits.candidates import first_best, logits_of
from calm_jax.exits.measured_exit import check_grid, on_grid
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class PatienceState:
  """What the rule keeps of each row, int32 [B] each.

  Attributes:
    patience: how often the token must have stayed the same.
    tokens: the best token at the last look.
    times: how often in a row it has stayed the same.
  """

  patience: Array
  tokens: Array
  times: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class PatienceExit:
  """Fires when the best token stayed the same for some looks in a row.

  The first look at a token has nothing to compare with, so that with patience 1
  the second look may stop. A setting of it is a whole number,
  {'exit_rule.patience': 2}; more than there are looks never stops.

  The confidence is the share of the patience that has been had, at most 1.

  Attributes:
    patience: int [] or [B], at least 1.
    minimum_exit_layer: the first exit layer that is looked at, 1..L.
    interval: every how many layers, at least 1.
  """

  patience: Array | int
  minimum_exit_layer: int = dataclasses.field(
    default=1, metadata=dict(static=True)
  )
  interval: int = dataclasses.field(default=1, metadata=dict(static=True))

  needs_logits = True

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with an int32 leaf; raises ValueError on bad numbers."""
    del max_length
    check_grid(self.minimum_exit_layer, self.interval, decoder)
    patience = checks.checked_array(
      self.patience,
      'patience',
      shapes=((), (batch_size,)),
      low=1,
      high=2**30,
      dtype=jnp.int32,
      remedy='give how often in a row a token must stay the same, 1 or more',
    )
    return dataclasses.replace(self, patience=patience)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PatienceState:
    """Returns the patience of each row, and that nothing was seen."""
    del decoder, max_length
    nothing = jnp.zeros((batch_size,), jnp.int32)
    return PatienceState(
      patience=jnp.broadcast_to(self.patience, (batch_size,)),
      tokens=nothing,
      times=nothing,
    )

  def looks(self, layer: Array | int) -> Array | bool:
    """Returns whether the token is compared after this layer."""
    first = self.minimum_exit_layer
    return on_grid(layer, first, self.interval, first)

  def step(
    self, state: PatienceState, view: LayerView
  ) -> tuple[PatienceState, Array, Array]:
    """Stops rows whose best token has not changed for long enough."""
    tokens = first_best(logits_of(view))
    if view.token_ids is not None:
      ids = jnp.take_along_axis(view.token_ids, tokens[:, None], axis=1)
      tokens = ids[:, 0].astype(jnp.int32)
    again = tokens == state.tokens
    again &= view.layer + 1 > self.minimum_exit_layer
    times = jnp.where(again, state.times + 1, 0)
    state = dataclasses.replace(state, tokens=tokens, times=times)
    had = times.astype(jnp.float32) / state.patience
    return state, times >= state.patience, jnp.minimum(had, 1.0)

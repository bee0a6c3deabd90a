"""FFN skipping: attention always runs, a feed-forward that changes little not.

FFN-SkipLLM (arXiv 2404.03865): a layer's keys and values are made from the
state that enters it and its attention always runs, so that no cache is ever
incomplete. In the middle of the stack, once a token's feed-forward no longer
turns its state, those of the following layers are left out.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import (
  LayeredDecoder,
  LayerWork,
  PlansAhead,
  PlanView,
)
from calm_jax.pytrees import register_pytree

MEASURES = ('cosine', 'update')


@register_pytree
@dataclasses.dataclass(frozen=True)
class SkipSaturatedFeedForward(PlansAhead):
  """Leaves out feed-forward blocks of a token from the first saturated one on.

  Saturated is a block whose input and output are as alike as the threshold
  says. It saves where all rows of a batch agree; where they do not, the block
  runs and those that do not want it keep their states.

  Attributes:
    threshold: float32 [] or [B] in [0, 1]; at 1 nothing is ever left out.
    measure: how alike the residual stream is before and after a block:
      'cosine', or 'update', 1 - |after - before| / |before|. T5's stream grows
      from layer to layer, which by itself pushes the cosine up.
    first_layers: layers at the beginning that run whole.
    last_layers: layers at the end that do.
    first_positions: int32 [], positions of an output that do.
  """

  threshold: Array | float
  measure: str = dataclasses.field(default='cosine', metadata=dict(static=True))
  first_layers: int = dataclasses.field(default=1, metadata=dict(static=True))
  last_layers: int = dataclasses.field(default=1, metadata=dict(static=True))
  first_positions: Array | int = 1

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'SkipSaturatedFeedForward':
    """Returns itself with arrays; raises ValueError for bad numbers."""
    del max_length
    if self.measure not in MEASURES:
      raise ValueError(
        f'measure of SkipSaturatedFeedForward is {self.measure!r}; give '
        f'{" or ".join(MEASURES)}'
      )
    for name in ('first_layers', 'last_layers'):
      checks.check_whole(
        getattr(self, name), name, low=0, high=decoder.num_layers
      )
    return dataclasses.replace(
      self,
      threshold=checks.checked_array(
        self.threshold,
        'threshold of SkipSaturatedFeedForward',
        shapes=((), (batch_size,)),
        low=0.0,
        high=1.0,
        remedy='give one in [0, 1], where 1.0 leaves nothing out',
      ),
      first_positions=checks.checked_array(
        self.first_positions,
        'first_positions of SkipSaturatedFeedForward',
        dtype=jnp.int32,
        shapes=((),),
        low=0,
        remedy='give 0 or more',
      ),
    )

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'Saturation':
    """Returns the numbers of every row, none saturated."""
    del max_length
    layers = np.arange(decoder.num_layers)
    middle = layers >= self.first_layers
    middle &= layers < decoder.num_layers - self.last_layers
    rows = (batch_size,)
    return Saturation(
      threshold=jnp.broadcast_to(self.threshold, rows),
      first_positions=jnp.broadcast_to(self.first_positions, rows),
      middle=jnp.broadcast_to(middle, (batch_size, decoder.num_layers)),
      saturated=jnp.zeros(rows, bool),
    )

  def before(
    self, state: 'Saturation', view: PlanView
  ) -> tuple['Saturation', LayerWork]:
    """Asks for attention, and for the FFN of rows that are not saturated."""
    # A new token has seen nothing yet.
    saturated = state.saturated & jnp.not_equal(view.layer, 0)
    skips = saturated & state.middle[:, view.layer]
    state = dataclasses.replace(state, saturated=saturated)
    return state, LayerWork(feed_forward=~skips)

  def after(
    self, state: 'Saturation', view: PlanView, work: LayerWork
  ) -> 'Saturation':
    """Notes the rows that their feed-forward left as good as they were."""
    assert view.attended is not None and view.left is not None, 'it has run'
    assert work.feed_forward is not None, 'before asked for some rows'
    alike = _likeness(view.attended, view.left, self.measure)
    found = work.feed_forward & state.middle[:, view.layer]
    found &= (alike >= state.threshold) & (state.threshold < 1.0)
    found &= view.positions >= state.first_positions
    return dataclasses.replace(state, saturated=state.saturated | found)


@register_pytree
@dataclasses.dataclass(frozen=True)
class Saturation:
  """The state of `SkipSaturatedFeedForward`.

  Attributes:
    threshold: float32 [B].
    first_positions: int32 [B].
    middle: bool [B, L], layers whose feed-forward may be left out.
    saturated: bool [B], whether a block of the present position was.
  """

  threshold: Array
  first_positions: Array
  middle: Array
  saturated: Array


def _likeness(before: Array, after: Array, measure: str) -> Array:
  """Returns how alike two states [B, D] are, float32 [B] in [0, 1]."""
  before, after = before.astype(jnp.float32), after.astype(jnp.float32)

  def norm(states):
    return jnp.maximum(jnp.linalg.norm(states, axis=-1), 1e-12)

  if measure == 'cosine':
    alike = (before * after).sum(-1) / (norm(before) * norm(after))
  else:
    alike = 1.0 - jnp.linalg.norm(after - before, axis=-1) / norm(before)
  return jnp.clip(alike, 0.0, 1.0)

"""Layer plans: which sub-layers of a layer run, decided before it runs.

The `layer_plan` slot of a policy. Those here say the same for all tokens; what
is decided by position, or by what a token's state did, is in `skip_decode` and
`saturated_feed_forward`.
"""

import dataclasses

import numpy as np

from calm_jax import checks
from calm_jax.array_types import PyTree
from calm_jax.interfaces import (
  LayeredDecoder,
  LayerWork,
  PlansAhead,
  PlanView,
  Segment,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class EveryLayer(PlansAhead, StatelessSlot):
  """Runs every sub-layer of every layer. The null object."""

  same_everywhere = True

  def before(self, state: PyTree, view: PlanView) -> tuple[PyTree, LayerWork]:
    """Asks for all of the layer."""
    del view
    return state, LayerWork()


@register_pytree
@dataclasses.dataclass(frozen=True)
class KeepLayers(PlansAhead, StatelessSlot):
  """Runs n evenly spaced layers for all tokens: Unified Layer Skipping.

  The layers of arXiv 2404.06954, first and last among them, rounded instead of
  cut off, so that every n from 1 to L gives n layers (1 gives the first). The
  others are in no program, and of them no cross-attention K/V are made. All n
  are worth having on a checkpoint that was trained with several depths.

  Attributes:
    num_layers: n, how many layers run, 1..L.
  """

  num_layers: int = dataclasses.field(metadata=dict(static=True))

  same_everywhere = True
  every_layer = False

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'KeepLayers':
    """Returns itself; raises ValueError for a number of layers there is not."""
    del batch_size, max_length
    checks.check_whole(
      self.num_layers,
      'num_layers of KeepLayers',
      low=1,
      high=decoder.num_layers,
    )
    return self

  def segments(self, num_layers: int, max_length: int) -> tuple[Segment, ...]:
    """Returns one segment of the layers that are kept."""
    return (Segment(max_length, evenly_spaced(self.num_layers, num_layers)),)

  def before(self, state: PyTree, view: PlanView) -> tuple[PyTree, LayerWork]:
    """Asks for all of the layer: it is one that is kept."""
    del view
    return state, LayerWork()


def evenly_spaced(kept: int, num_layers: int) -> tuple[int, ...]:
  """Returns n of L layers, as far from each other as they can be.

  >>> evenly_spaced(4, 12), evenly_spaced(1, 12), evenly_spaced(12, 12)[-1]
  ((0, 4, 7, 11), (0,), 11)
  """
  checks.check_whole(kept, 'the number of layers kept', low=1, high=num_layers)
  places = np.linspace(0, num_layers - 1, kept)
  return tuple(int(place) for place in np.floor(places + 0.5))

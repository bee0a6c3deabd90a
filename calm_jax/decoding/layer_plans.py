"""Layer plans: which sub-layers of a layer run, decided before it runs.

The `layer_plan` slot of a policy. A plan reads positions, not states, so it is
where methods with a fixed budget per position belong.
"""

import dataclasses

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import LayeredDecoder, LayerWork
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class EveryLayer:
  """Runs every sub-layer of every layer. The null object."""

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself: there is nothing to check."""
    del decoder, batch_size, max_length
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns no state."""
    del decoder, batch_size, max_length

  def step(
    self, state: PyTree, layer: Array | int, positions: Array
  ) -> tuple[PyTree, LayerWork]:
    """Asks for all of the layer."""
    del layer, positions
    return state, LayerWork()

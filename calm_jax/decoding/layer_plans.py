"""Layer plans: which sub-layers of a layer run, decided before it runs.

The `layer_plan` slot of a policy. A plan reads positions, not states, so it is
where methods with a fixed budget per position belong.
"""

import dataclasses

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import LayerWork, StatelessSlot
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class EveryLayer(StatelessSlot):
  """Runs every sub-layer of every layer. The null object."""

  def step(
    self, state: PyTree, layer: Array | int, positions: Array
  ) -> tuple[PyTree, LayerWork]:
    """Asks for all of the layer."""
    del layer, positions
    return state, LayerWork()

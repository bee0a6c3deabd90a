"""Training under the layer plans that decode later."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array
from calm_jax.interfaces import LayerPlan
from calm_jax.training.forward import Draws, Forward
from calm_jax.training.losses import ExitMetrics
from calm_jax.training.objectives.wrapping import WrappingObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedLayers(WrappingObjective):
  """Runs, in every row, the layers that one of some plans would run.

  A layer that a plan leaves out at a position hands its state on there, as it
  does in decoding. With one plan, the model is made for that one: SkipDecode
  (arXiv 2307.02628) or Unified Layer Skipping (arXiv 2404.06954). With several
  each row draws one, all as probable, so that one checkpoint serves several
  speeds; `decoding.EveryLayer()` among them keeps full depth. Early exits are
  trained as well, of states that were left as they are: where none are wanted,
  give the objective inside `layer_weights=training.last_layer_weights`.

  Attributes:
    plans: layer plans whose layers follow from the position alone, such as
      `decoding.KeepLayers(6)` or `decoding.SkipDecode(12, 4, length=32)`.
  """

  plans: Sequence[LayerPlan]

  def __post_init__(self):
    super().__post_init__()
    if isinstance(self.plans, LayerPlan) or not self.plans:
      raise ValueError(
        f'plans is {self.plans!r}; give a list of layer plans, such as '
        '[decoding.KeepLayers(6)]'
      )
    for plan in self.plans:
      if not isinstance(plan, LayerPlan):
        raise ValueError(
          f'{plan!r} is no layer plan; give such as decoding.KeepLayers(6)'
        )
      if plan.may_skip_for_all and not plan.same_everywhere:
        raise ValueError(
          f'what {plan} leaves out is decided while it decodes, and training '
          'needs to know before; give decoding.KeepLayers(...), or '
          'decoding.SkipDecode(...) with segmented=True'
        )

  def for_layers(self, num_layers: int) -> Self:
    """Returns the same; ValueError for a plan that L layers cannot have."""
    for plan in self.plans:
      lengths = (4, 8)
      short, long = (_layers_of(plan, num_layers, length) for length in lengths)
      if (short != long[: len(short)]).any():
        raise ValueError(
          f'{plan} depends on how long outputs may be, and batches are of many '
          'lengths; give it a length'
        )
    return dataclasses.replace(
      super().for_layers(num_layers), plans=tuple(self.plans)
    )

  def layer_mask(
    self, draws: Draws, num_layers: int, positions: Array
  ) -> Array | None:
    """Returns which layers run, bool [B, T, L]."""
    inside = super().layer_mask(draws, num_layers, positions)
    length = positions.shape[1]
    layers = jnp.array(
      [_layers_of(plan, num_layers, length) for plan in self.plans]
    )
    drawn = draws.uniform('PlannedLayers') * len(self.plans)
    drawn = jnp.minimum(drawn.astype(jnp.int32), len(self.plans) - 1)
    runs = layers[drawn[:, None], positions]
    return runs if inside is None else runs & inside

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss, of states of which layers were left out."""
    return self.objective.loss(forward)

  def description(self) -> dict[str, Any]:
    """Returns the name, what it is around, and the plans in words."""
    described = super().description()
    return {**described, 'plans': [str(plan) for plan in self.plans]}


def _layers_of(plan: LayerPlan, num_layers: int, length: int) -> np.ndarray:
  """Returns which layers a plan runs at each position, bool [T, L]."""
  runs = np.zeros((length, num_layers), bool)
  begin = 0
  for segment in plan.segments(num_layers, length):
    runs[begin : segment.end, list(segment.layers)] = True
    begin = segment.end
  return runs

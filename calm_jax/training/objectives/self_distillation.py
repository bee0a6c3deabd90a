"""Exits that learn from the last layer besides the targets."""

import dataclasses

from calm_jax.array_types import Array
from calm_jax.training.forward import Forward
from calm_jax.training.losses import ExitMetrics
from calm_jax.training.objectives.wrapping import (
  WrappingObjective,
  check_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfDistillation(WrappingObjective):
  """Mixes what the last layer says into the targets of the other exits.

  The loss of exit i < L is (1 - weight) times the targets' plus weight
  KL(p_L || p_i) over the vocabulary; p_L is a constant, without dropout before
  its logits. The last layer learns from the targets alone. What exits are asked
  for is then what consistency with the full model asks for. (DEED, arXiv
  2311.08623, and Balcony, arXiv 2503.05005, distil into exits likewise.)

  Attributes:
    weight: in [0, 1]; 1 leaves exits no targets but the last layer's.
  """

  weight: float = 0.5

  def __post_init__(self):
    super().__post_init__()
    check_number(self.weight, 'weight', high=1.0)

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss with these targets."""
    return self.objective.loss(
      dataclasses.replace(forward, distilled=self.weight)
    )

"""Which heads of encoder layers a gate is for."""

import dataclasses
from typing import Any

from calm_jax.array_types import PyTree
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.trained_parts import JUDGED_HEADS


@dataclasses.dataclass(frozen=True)
class JudgedHeads:
  """Folders of heads in a run directory.

  Attributes:
    folder: of those that the gate is for, or that training begins with.
    trained_on: where heads go that are trained on with the gate, as
      `encoder_joint_stage` does; None for heads as they are.
    boosted: of that stage.
  """

  folder: str = 'encoder_heads'
  trained_on: str | None = None
  boosted: bool | None = None

  def __post_init__(self):
    """Raises ValueError for a boost of heads that are not trained."""
    if self.boosted is not None and self.trained_on is None:
      raise ValueError(
        f'boosted is {self.boosted}, and no heads are trained: name the folder '
        'they go to (trained_on, JOINT_HEADS), or leave it None'
      )


def judged_context(tree: PyTree) -> dict[str, Any]:
  """Returns what the context of a gate says of the heads it judges.

  Args:
    tree: {'encoder_heads': heads or their arrays}, whose fingerprint their own
      checkpoint has.
  """
  return {JUDGED_HEADS: parameter_fingerprint(tree)}

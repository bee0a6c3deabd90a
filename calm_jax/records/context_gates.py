"""How context gates do: what pruning by them costs, and by a window."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ContextShare:
  """Contexts at one shift of their scores, with a window as large beside.

  Attributes:
    beta_shift: of `decoding.PrunedContext`; None for infinity, nothing dropped.
    kept: share of past positions that are still read, over tokens and layers.
    most: positions that a layer holds at once, at most, the present one among
      them: as `slots` it leaves no overflow.
    differing: share of output tokens that are not those of the whole context.
    divergence: KL(whole || pruned) in nats per token.
    window_differing: as `differing`, where each token reads as many positions
      in each layer, the last ones.
    window_divergence: likewise.
  """

  beta_shift: float | None
  kept: float
  most: int
  differing: float
  divergence: float
  window_differing: float
  window_divergence: float


@dataclasses.dataclass(frozen=True)
class ContextGateEvaluation:
  """Context gates, measured on one split of what the full model says.

  Teacher forced with that, at full depth, with room for all positions.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: that the model says there.
    longest: tokens of its longest output.
    price: of the mean share kept, in training.
    size: numbers of a query and of a key.
    steps: how long they were trained.
    shifts: what is lost at falling shifts.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  longest: int
  price: float
  size: int
  steps: int
  shifts: tuple[ContextShare, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    lines = (
      f'beta_shift {"inf" if one.beta_shift is None else f"{one.beta_shift:g}"}'
      f': {100 * one.kept:.1f} % of the past kept, {one.most} at most, '
      f'{100 * one.differing:.1f} % of tokens differ '
      f'({100 * one.window_differing:.1f} % with the last ones), divergence '
      f'{one.divergence:.3f} ({one.window_divergence:.3f})'
      for one in self.shifts
    )
    return '\n'.join(
      [
        f'{self.split} of {self.task}, {self.num_tokens:,} tokens in outputs '
        f'of up to {self.longest}',
        *lines,
      ]
    )

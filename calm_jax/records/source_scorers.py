"""How a source scorer does: what pruning by it costs, and by chance."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class PrunedShare:
  """Sources at one shift of their scores, with as many kept by chance beside.

  Attributes:
    beta_shift: of `decoding.PrunedSource`; None for infinity, nothing pruned.
    kept: share of source tokens whose gates are open.
    differing: share of output tokens that are not those of the whole source.
    divergence: KL(whole || pruned) in nats per token.
    chance_differing: as `differing`, where each source keeps as many positions,
      drawn at random.
    chance_divergence: likewise.
  """

  beta_shift: float | None
  kept: float
  differing: float
  divergence: float
  chance_differing: float
  chance_divergence: float


@dataclasses.dataclass(frozen=True)
class SourceScorerEvaluation:
  """A source scorer, measured on one split of what the full model says.

  Teacher forced with that, at full depth, with room for all positions.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: that the model says there.
    num_positions: source tokens.
    share: of them that training aimed at.
    steps: how long it was trained.
    shifts: what is lost at falling shifts.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  num_positions: int
  share: float
  steps: int
  shifts: tuple[PrunedShare, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    lines = (
      f'beta_shift {"inf" if one.beta_shift is None else f"{one.beta_shift:g}"}'
      f': {100 * one.kept:.1f} % of sources kept, {100 * one.differing:.1f} % '
      f'of tokens differ ({100 * one.chance_differing:.1f} % by chance), '
      f'divergence {one.divergence:.3f} ({one.chance_divergence:.3f})'
      for one in self.shifts
    )
    return '\n'.join(
      [
        f'{self.split} of {self.task}, {self.num_tokens:,} tokens after '
        f'{self.num_positions:,} of sources',
        *lines,
      ]
    )

"""How a draft head does, draft by draft."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class DraftHeadEvaluation:
  """A draft head, measured on one split under teacher forcing.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: target tokens that a first draft was made of.
    steps: how long the head was trained.
    cross_entropies: of the model's own tokens at the first draft after a
      checked token, the second and so on, in nats.
    agreements: shares of these drafts that are the model's token.
    kept: shares of them before which all others are right, too: what a check
      keeps, where the model says the targets.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  steps: int
  cross_entropies: tuple[float, ...]
  agreements: tuple[float, ...]
  kept: tuple[float, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    drafts = zip(self.agreements, self.kept, strict=True)
    lines = (
      f"draft {number}: {100 * right:.1f} % are the model's token, "
      f'{100 * kept:.1f} % kept'
      for number, (right, kept) in enumerate(drafts, 1)
    )
    return '\n'.join(
      [f'{self.split} of {self.task}, {self.num_tokens:,} tokens', *lines]
    )

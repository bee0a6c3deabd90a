"""What small twins keep of a model, where they run in place of its blocks."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class TwinPattern:
  """One choice per layer, the same for all tokens.

  Attributes:
    choices: [L], 0 no feed-forward, 1 the layer's own, 2 its twin.
    hidden_units: of all that run, summed over the layers.
    agreement: the share of the model's tokens that it says, too.
    divergence: KL(the model || with these choices) in nats per token.
  """

  choices: tuple[int, ...]
  hidden_units: int
  agreement: float
  divergence: float


@dataclasses.dataclass(frozen=True)
class TwinEvaluation:
  """Small twins, measured on inputs of one split after the model's outputs.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: tokens that the model says there.
    steps: how long the twins were trained.
    hidden_units: U, of each twin.
    patterns: what was measured.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  steps: int
  hidden_units: int
  patterns: tuple[TwinPattern, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    lines = (
      f'feed-forwards {"".join(map(str, pattern.choices))}: '
      f'{pattern.hidden_units:,} hidden units, says '
      f"{100 * pattern.agreement:.1f} % of the model's tokens; divergence "
      f'{pattern.divergence:.3f}'
      for pattern in self.patterns
    )
    return '\n'.join(
      [
        f'{self.split} of {self.task}, {self.num_tokens:,} tokens; for each '
        f'layer 0 none, 1 its own, 2 its twin of {self.hidden_units} units',
        *lines,
      ]
    )

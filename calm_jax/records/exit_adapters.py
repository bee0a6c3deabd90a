"""What exit adapters do for the exits of a model, layer by layer."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ExitAdapterEvaluation:
  """Exit adapters, measured on inputs of one split after the model's outputs.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: tokens that the model says there.
    steps: how long the adapters were trained.
    agreements_before: shares of them that the layers 1..L-1 say, too, as they
      are.
    agreements: the same through the adapters.
    divergences_before: KL(last layer || layer) in nats per token, as they are.
    divergences: the same through the adapters.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  steps: int
  agreements_before: tuple[float, ...]
  agreements: tuple[float, ...]
  divergences_before: tuple[float, ...]
  divergences: tuple[float, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    exits = zip(
      self.agreements_before,
      self.agreements,
      self.divergences_before,
      self.divergences,
      strict=True,
    )
    lines = (
      f"layer {number}: says {100 * after:.1f} % of the last layer's tokens, "
      f'{100 * before:.1f} % without an adapter; divergence {near:.3f}, '
      f'{far:.3f} without'
      for number, (before, after, far, near) in enumerate(exits, 1)
    )
    return '\n'.join(
      [f'{self.split} of {self.task}, {self.num_tokens:,} tokens', *lines]
    )

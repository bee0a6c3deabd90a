"""What a router of small twins keeps of a model, beside choices by chance."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class RoutedBlocks:
  """A router's choices at one threshold, with blind ones beside.

  Attributes:
    threshold: of `decoding.RoutedFeedForward`.
    cost: hidden units of the blocks that ran, as a share of the model's.
    none: share of tokens and layers of which no feed-forward ran.
    own: of which the layer's own did.
    twin: of which its twin did.
    divergence: KL(the model || with these choices) in nats per token.
    agreement: the share of the model's tokens that it says, too.
    blind_divergence: as `divergence`, where chance takes each option as often
      in each layer.
    blind_agreement: likewise.
  """

  threshold: float
  cost: float
  none: float
  own: float
  twin: float
  divergence: float
  agreement: float
  blind_divergence: float
  blind_agreement: float


@dataclasses.dataclass(frozen=True)
class TwinRouterEvaluation:
  """A router of small twins, measured after what the model itself says.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: tokens that the model says there.
    steps: how long the router was trained.
    hidden_units: U, of each twin.
    share: the budget that it was trained for, of the model's hidden units.
    reads_states: False for the control that sees no state.
    thresholds: what is kept at falling thresholds.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  steps: int
  hidden_units: int
  share: float
  reads_states: bool
  thresholds: tuple[RoutedBlocks, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    lines = (
      f'threshold {one.threshold:g}: {100 * one.cost:.1f} % of the hidden '
      f'units (own {100 * one.own:.1f} %, twin {100 * one.twin:.1f} %, none '
      f'{100 * one.none:.1f} %), says {100 * one.agreement:.1f} % of the '
      f"model's tokens ({100 * one.blind_agreement:.1f} % by chance), "
      f'divergence {one.divergence:.3f} ({one.blind_divergence:.3f})'
      for one in self.thresholds
    )
    sees = 'the state' if self.reads_states else 'no state'
    return '\n'.join(
      [
        f'{self.split} of {self.task}, {self.num_tokens:,} tokens; a router '
        f'that sees {sees}, trained for {100 * self.share:g} % of the hidden '
        f'units, beside twins of {self.hidden_units}',
        *lines,
      ]
    )

"""How heads of encoder layers do."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class EncoderHeadLayer:
  """The head of one layer.

  Attributes:
    accuracy: the share of inputs that it classifies rightly.
    agreement: the share that it classifies as the last layer's head does.
    nll: of the right class, in nats per input.
    temperature: fitted to these inputs, for `exits.Tempered`.
    tempered_nll: of logits over it; not more than `nll`.
  """

  accuracy: float
  agreement: float
  nll: float
  temperature: float
  tempered_nll: float


@dataclasses.dataclass(frozen=True)
class EncoderHeadEvaluation:
  """Heads of encoder layers, measured on one split.

  Attributes:
    task: the task's name.
    split: the split.
    num_examples: N, inputs.
    num_classes: C.
    steps: how long they were trained.
    with_encoder: whether the encoder was trained with them.
    layers: L heads.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_examples: int
  num_classes: int
  steps: int
  with_encoder: bool
  layers: tuple[EncoderHeadLayer, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

  def describe(self) -> str:
    """Returns it as a few lines of text."""
    lines = (
      f'layer {number}: accuracy {100 * layer.accuracy:.1f} %, as the last '
      f'layer {100 * layer.agreement:.1f} %, nll {layer.nll:.3f}, '
      f'{layer.tempered_nll:.3f} at temperature {layer.temperature:.2f}'
      for number, layer in enumerate(self.layers, start=1)
    )
    return '\n'.join(
      [
        f'{self.split} of {self.task}, {self.num_examples:,} inputs of '
        f'{self.num_classes} classes',
        *lines,
      ]
    )

"""How a gate does: exit by exit, and in layers at a given disagreement."""

import dataclasses

from calm_jax.records.classifiers import ClassifierLayer
from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class MeasureDepth:
  """How early tokens leave by a measure while few disagree.

  Attributes:
    measure: what is compared with the threshold.
    allowed: the largest share of tokens that may differ from the last layer's.
    threshold: the one that leaves earliest within that, chosen on these very
      tokens; 1 where every one below it is too low. Of `QuantileExit` for
      'gate, accumulated', of `ConfidenceExit` for the others.
    mean_exit_layer: at it, in 1..L.
    disagreement: the share of tokens that differ at it.
  """

  measure: str
  allowed: float
  threshold: float
  mean_exit_layer: float
  disagreement: float


@dataclasses.dataclass(frozen=True)
class GateEvaluation:
  """A gate, measured on one split under teacher forcing.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: target tokens counted at every exit.
    num_layers: L, the decoder layers.
    target: what it was trained for.
    steps: how long it was trained.
    layers: its rates at exits 1..L-1, at confidence 0.5.
    depths: of the gate and of other measures on the same tokens.
    first_agreeing: mean of the first layer that says the last one's token.
    settled: mean of the first layer from which on all say it.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  num_layers: int
  target: str
  steps: int
  layers: tuple[ClassifierLayer, ...]
  depths: tuple[MeasureDepth, ...]
  first_agreeing: float
  settled: float
  context: RunContext
  format_version: int = FORMAT_VERSION

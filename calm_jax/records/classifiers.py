"""How an early-exit classifier does, exit by exit."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ClassifierLayer:
  """How the early-exit classifier does at one exit.

  A token is held back where confidence < 0.5; it should be where the exit's
  token is not the last layer's. Precision, recall and F1 are those of holding
  back, NaN where there is nothing to count.

  Attributes:
    exit_layer: the exit, in 1..L-1.
    agreement: share of target tokens on which it agrees with the last layer.
    precision: share of the tokens held back that should be.
    recall: share of the tokens that should be held back that are.
    f1: harmonic mean of the two.
    mean_confidence: over all target tokens, in [0, 1].
    cross_entropy: binary, in nats per target token.
  """

  exit_layer: int
  agreement: float
  precision: float
  recall: float
  f1: float
  mean_confidence: float
  cross_entropy: float


@dataclasses.dataclass(frozen=True)
class ClassifierEvaluation:
  """An early-exit classifier, measured on one split under teacher forcing.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: target tokens counted at every exit.
    num_layers: L, the decoder layers.
    loss: what it was trained with: 'independent', 'balanced' or 'geometric'.
    steps: how long it was trained.
    layers: its rates at exits 1..L-1.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  num_layers: int
  loss: str
  steps: int
  layers: tuple[ClassifierLayer, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

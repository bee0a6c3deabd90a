"""What heads of encoder layers say of held-out inputs, and temperatures."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.data.class_labels import ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.source_heads import SourceHeads
from calm_jax.training import encoder_head_losses
from calm_jax.training.temperatures import GRID, FittedTemperatures


@dataclasses.dataclass(frozen=True, eq=False)
class ClassLogits:
  """What all heads say of N inputs.

  Attributes:
    logits: float32 [L, N, C].
    classes: int32 [N], the right ones.
  """

  logits: np.ndarray
  classes: np.ndarray

  @property
  def accuracies(self) -> np.ndarray:
    """The share of inputs that each layer classifies rightly, [L]."""
    return (self.logits.argmax(axis=-1) == self.classes).mean(axis=1)

  @property
  def agreements(self) -> np.ndarray:
    """The share that each layer classifies as the last one does, [L]."""
    said = self.logits.argmax(axis=-1)
    return (said == said[-1]).mean(axis=1)


def class_logits(
  config: model.T5Config,
  params: Params,
  heads: EncoderHeads | SourceHeads,
  batches: Iterable[Mapping[str, Any]],
  *,
  labels: ClassLabels,
) -> ClassLogits:
  """Returns the logits of all heads, in one pass over all layers.

  Args:
    config: the model.
    params: its parameters.
    heads: the heads.
    batches: dicts of NumPy arrays with T5X's keys.
    labels: the classes that the heads were trained for.

  Raises:
    ValueError: if the heads are of another model's shape, a batch is bad, or
      all hold no input.
  """
  heads = heads.check(model.as_layered_encoder(config))
  look = encoder_head_losses.make_class_logits(config)
  parts, classes = [], []
  for batch in batches:
    batch = encoder_head_losses.check_class_batch(
      batch, config=config, labels=labels
    )
    real = batch[encoder_head_losses.CLASSES] >= 0
    found = look(params, heads, batch[encoder_head_losses.INPUTS])
    parts.append(np.asarray(jax.device_get(found))[:, real])
    classes.append(batch[encoder_head_losses.CLASSES][real])
  if not sum(map(len, classes)):
    raise ValueError(
      f'the {len(classes)} batches hold no input with a class: is the split '
      'empty, or the iterator used up?'
    )
  return ClassLogits(np.concatenate(parts, axis=1), np.concatenate(classes))


def fit_class_temperatures(found: ClassLogits) -> FittedTemperatures:
  """Finds the temperature of every head at which the classes are likeliest.

  A search over `GRID`, the same for all; 1 is in it, so that no head comes out
  less likely than it was. What a head says is not changed. Source: The Right
  Tool for the Job, arXiv 2004.07453.

  Args:
    found: of inputs that neither trained the heads nor certify a threshold.
  """
  losses = np.array(
    [
      [_loss(logits / temperature, found.classes) for temperature in GRID]
      for logits in found.logits.astype(np.float64)
    ]
  )
  best = losses.argmin(axis=1)
  return FittedTemperatures(
    temperatures=tuple(GRID[index] for index in best),
    before=tuple(losses[:, GRID.index(1.0)].tolist()),
    after=tuple(losses[np.arange(len(best)), best].tolist()),
  )


def _loss(logits: np.ndarray, classes: np.ndarray) -> float:
  """Returns the mean negative log-likelihood of classes [N], in nats."""
  best = logits.max(axis=1, keepdims=True)
  total = np.log(np.exp(logits - best).sum(axis=1)) + best[:, 0]
  return float((total - logits[np.arange(len(classes)), classes]).mean())

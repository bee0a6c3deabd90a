"""How well the early-exit classifier tells which layers may be left.

Counts are taken on the device, batch by batch, and turned into rates on the
host at the end. The class that matters is "don't exit": a token let go too
early changes the output, one held back only costs time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model, records
from calm_jax.array_types import Array, Params
from calm_jax.exits import Classifier
from calm_jax.pytrees import register_pytree
from calm_jax.training import classifier_losses, losses
from calm_jax.training import step as step_lib

# A token is held back where its confidence is below this.
HALF = 0.5


@register_pytree
@dataclasses.dataclass(frozen=True)
class ClassifierCounts:
  """Sums over target tokens, at each exit but the last.

  Attributes:
    num_tokens: float32 [], target tokens.
    inconsistent: float32 [L-1], tokens whose label is "don't exit".
    held_back: float32 [L-1], tokens with confidence < 0.5.
    rightly_held_back: float32 [L-1], tokens in both.
    confidence: float32 [L-1], sum of confidences.
    cross_entropy: float32 [L-1], sum of binary cross-entropies in nats.
  """

  num_tokens: Array
  inconsistent: Array
  held_back: Array
  rightly_held_back: Array
  confidence: Array
  cross_entropy: Array

  @property
  def right(self) -> Array:
    """[L-1], tokens on which classifier and label agree."""
    wrong = self.inconsistent + self.held_back - 2 * self.rightly_held_back
    return self.num_tokens - wrong

  def exits(self) -> losses.ExitMetrics:
    """Returns the metrics of a training step, of exits 1..L-1."""
    num_tokens = jnp.maximum(self.num_tokens, 1.0)
    return losses.ExitMetrics(
      losses=self.cross_entropy / num_tokens,
      accuracies=self.right / num_tokens,
      num_tokens=self.num_tokens,
    )

  def layers(self) -> tuple[records.ClassifierLayer, ...]:
    """Returns the rates at exits 1..L-1; for counts on the host."""
    return tuple(_rates(self, i) for i in range(len(self.held_back)))


def states_and_labels(
  config: model.T5Config, params: Params, batch: Mapping[str, Any]
) -> tuple[Array, Array]:
  """Runs the frozen model on a batch, teacher forced and without dropout.

  Returns:
    The states after each layer but the last [L-1, B, T, D], and the labels
    bool [L-1, B, T].
  """
  states = step_lib.batch_states(config, params, batch)
  labels = classifier_losses.consistency_labels(
    step_lib.logits_fn(config), params, states
  )
  return states[:-1], labels


def count_decisions(
  scores: Array, labels: Array, weights: Array
) -> ClassifierCounts:
  """Counts what a classifier decides.

  Args:
    scores: float32 [L-1, B, T], log-odds.
    labels: bool [L-1, B, T], whether a layer is consistent.
    weights: float32 [B, T], 1 at targets and 0 at padding.
  """
  confidence = jax.nn.sigmoid(scores)
  held_back = confidence < HALF

  def total(values):
    return (values * weights).sum(axis=(1, 2))

  return ClassifierCounts(
    num_tokens=weights.sum(),
    inconsistent=total(~labels),
    held_back=total(held_back),
    rightly_held_back=total(held_back & ~labels),
    confidence=total(confidence),
    cross_entropy=total(classifier_losses.binary_cross_entropy(scores, labels)),
  )


def evaluate_classifier(
  config: model.T5Config,
  params: Params,
  classifier: Classifier,
  batches: Iterable[Mapping[str, Any]],
) -> ClassifierCounts:
  """Returns what a classifier decides over a whole set, in float64.

  Its `layers()` are precision, recall and F1 of "don't exit".

  Args:
    config: the model.
    params: its parameters.
    classifier: the classifier.
    batches: dicts of NumPy arrays with T5X's keys.

  Raises:
    ValueError: if a batch is bad, or all hold no target token.
  """
  count = _make_count(config)
  classifier = Classifier(
    kernel=jnp.asarray(classifier.kernel, jnp.float32),
    bias=jnp.asarray(classifier.bias, jnp.float32),
  )
  counts = jax.device_get(
    [
      count(params, classifier, step_lib.check_batch(batch, config))
      for batch in batches
    ]
  )
  if not sum(part.num_tokens for part in counts) > 0:
    raise ValueError(
      f'the {len(counts)} validation batches of the classifier hold no target '
      'token: is the split empty, or the iterator used up?'
    )
  # Summed in float64: float32 counts exactly up to 2^24 only.
  return jax.tree.map(
    lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *counts
  )


@functools.lru_cache(maxsize=8)
def _make_count(config: model.T5Config) -> Callable[..., ClassifierCounts]:
  """Returns the jitted `(params, classifier, batch) -> ClassifierCounts`."""

  def count(params, classifier, batch):
    states, labels = states_and_labels(config, params, batch)
    scores = classifier.log_odds(states)
    return count_decisions(scores, labels, batch['decoder_loss_weights'])

  return jax.jit(count)


def _rates(counts: ClassifierCounts, layer: int) -> records.ClassifierLayer:
  held_back = counts.held_back[layer]
  inconsistent = counts.inconsistent[layer]
  both = counts.rightly_held_back[layer]
  return records.ClassifierLayer(
    exit_layer=layer + 1,
    agreement=float(1.0 - inconsistent / counts.num_tokens),
    precision=_share(both, held_back),
    recall=_share(both, inconsistent),
    f1=_share(2 * both, held_back + inconsistent),
    mean_confidence=float(counts.confidence[layer] / counts.num_tokens),
    cross_entropy=float(counts.cross_entropy[layer] / counts.num_tokens),
  )


def _share(part: float, whole: float) -> float:
  """Returns part / whole, NaN where there is nothing to share."""
  return float(part / whole) if whole > 0 else float('nan')

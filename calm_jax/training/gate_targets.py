"""What a gate is trained for: labels of layers, and losses.

A target reads what the layers of a frozen model say of every token
(`GateExamples`) and the gate's scores, log-odds of its confidence. The losses
of the early-exit classifier serve where layers are judged one by one.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training import classifier_losses
from calm_jax.training.gate_states import GateExamples


class GateTarget(Protocol):
  """What a gate is trained for: a frozen dataclass, written down by `repr`."""

  def labels(self, examples: GateExamples) -> Array:
    """Returns where a token may leave, bool [L-1, B, T]."""
    ...

  def loss(self, scores: Array, examples: GateExamples) -> Array:
    """Returns the loss, float32 [], of scores float32 [L-1, B, T]."""
    ...


@dataclasses.dataclass(frozen=True)
class Consistency:
  """A token may leave where the layer's token is already the last layer's.

  Source: arXiv 2207.07061, as the early-exit classifier.

  Attributes:
    form: 'independent', 'balanced' or 'geometric'; see `classifier_losses`.
  """

  form: str = 'independent'

  def __post_init__(self):
    classifier_losses.get_classifier_loss(self.form)

  def labels(self, examples: GateExamples) -> Array:
    """Returns bool [L-1, B, T]."""
    return examples.consistent

  def loss(self, scores: Array, examples: GateExamples) -> Array:
    """Returns the loss of `form` against the labels, float32 []."""
    loss = classifier_losses.get_classifier_loss(self.form)
    return loss(scores, self.labels(examples), examples.weights)


@dataclasses.dataclass(frozen=True)
class CostAware:
  """A token may leave from the layer on where loss plus price is least.

  l* = argmin_l [CE_l + price l / L], l = 1..L, of the cross-entropy of the last
  layer's token, the first one of a tie; the label of layer l is l >= l*. With
  price 0 that is the layer of least loss, with a large one the first layer. The
  target of JEI-DNN's gates (arXiv 2310.09163); the loss that its release trains
  its exits with is not here, as without a stopped gradient it does not depend
  on the gates at all.

  Attributes:
    price: of all L layers, in nats, at least 0.
    form: as in `Consistency`.
  """

  price: float = 0.1
  form: str = 'balanced'

  def __post_init__(self):
    _check_number(self.price, 'price', 'give nats for all layers, 0 or more')
    classifier_losses.get_classifier_loss(self.form)

  def labels(self, examples: GateExamples) -> Array:
    """Returns l >= l* of every layer but the last, bool [L-1, B, T]."""
    losses = examples.cross_entropies
    layers = jnp.arange(1, losses.shape[0] + 1)[:, None, None]
    best = (losses + self.price * layers / losses.shape[0]).argmin(axis=0)
    return layers[:-1] > best

  def loss(self, scores: Array, examples: GateExamples) -> Array:
    """Returns the loss of `form` against the labels, float32 []."""
    loss = classifier_losses.get_classifier_loss(self.form)
    return loss(scores, self.labels(examples), examples.weights)


@dataclasses.dataclass(frozen=True)
class Quantile:
  """The expected loss of leaving at random, and a prior: for `QuantileExit`.

  With p_l the probability of leaving at layer l, the last one taking the rest,
  so that they sum to 1, and geo the geometric distribution cut off likewise:
  sum_l p_l CE_l + beta KL(p || geo), mean over tokens. The direction of KL is
  PonderNet's (arXiv 2107.05407); PALBERT's release (arXiv 2204.03276) has the
  other one, and probabilities that sum to less than 1.

  Attributes:
    prior: the prior probability of leaving at a layer once it is reached, in
      (0, 1).
    beta: how much the prior counts, at least 0.
  """

  prior: float = 0.1
  beta: float = 0.5

  def __post_init__(self):
    _check_number(self.prior, 'prior', 'give a probability in (0, 1)', 1.0)
    if self.prior == 0.0:
      raise ValueError('prior 0.0: no layer would be left; give one in (0, 1)')
    _check_number(self.beta, 'beta', 'give 0 or more')

  def labels(self, examples: GateExamples) -> Array:
    """Returns bool [L-1, B, T]: as of `Consistency`."""
    return examples.consistent

  def loss(self, scores: Array, examples: GateExamples) -> Array:
    """Returns the loss, float32 []."""
    log_p = classifier_losses.exit_log_probabilities(scores)
    ratio = log_p - self.log_prior(len(log_p))[:, None, None]
    terms = examples.cross_entropies + self.beta * ratio
    per_token = (jnp.exp(log_p) * terms).sum(axis=0)
    weights = examples.weights
    return (per_token * weights).sum() / jnp.maximum(weights.sum(), 1.0)

  def log_prior(self, num_layers: int) -> Array:
    """Returns the logarithms of the prior probabilities, float32 [L]."""
    odds = math.log(self.prior) - math.log1p(-self.prior)
    scores = jnp.full((num_layers - 1,), odds, jnp.float32)
    return classifier_losses.exit_log_probabilities(scores)


_TARGETS: dict[str, Callable[[], GateTarget]] = {
  'consistency': Consistency,
  'balanced': lambda: Consistency('balanced'),
  'geometric': lambda: Consistency('geometric'),
  'cost_aware': CostAware,
  'quantile': Quantile,
}


def get_gate_target(name: str | GateTarget) -> GateTarget:
  """Returns a target by its name, with its defaults, or the one given.

  Args:
    name: 'consistency', 'balanced', 'geometric', 'cost_aware' or 'quantile'.

  Raises:
    ValueError: if the name is unknown; the message lists the known ones.
  """
  if not isinstance(name, str):
    if isinstance(name, type) or not hasattr(name, 'labels'):
      raise ValueError(
        f'{name!r} is no target of a gate; give an object such as '
        'training.CostAware(price=0.1), or a name'
      )
    return name
  if name not in _TARGETS:
    raise ValueError(
      f'unknown gate target {name!r}; known: {", ".join(sorted(_TARGETS))}'
    )
  return _TARGETS[name]()


def _check_number(value, name, remedy, below=math.inf) -> None:
  """Raises ValueError outside [0, below)."""
  if not checks.is_number(value) or not 0.0 <= value < below:
    raise ValueError(f'{name} {value!r}: {remedy}')

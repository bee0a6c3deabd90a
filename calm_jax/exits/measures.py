"""Confidence measures: how sure is this layer of its token, from 0 to 1?

A measure reads a `LayerView` and answers `confidence(view)`, float32 [B]. Two
variables, of the class or of the object, say what it costs: `needs_logits` (a
vocabulary matmul at every check) and `minimum_exit_layer` (the first exit at
which it can say anything).
"""

import dataclasses
from typing import Protocol, Self

import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.exits.candidates import (
  best_two,
  logits_of,
  total_over_best,
)
from calm_jax.exits.classifier import Classifier
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree


class Measure(Protocol):
  """What `ConfidenceExit` compares with its threshold."""

  @property
  def needs_logits(self) -> bool:
    """Whether `confidence` reads `view.logits`; static."""
    ...

  @property
  def minimum_exit_layer(self) -> int:
    """The first exit at which it can say anything; static."""
    ...

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Self:
    """Returns itself with float32 leaves; raises ValueError on bad ones."""
    ...

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1]."""
    ...


@register_pytree
@dataclasses.dataclass(frozen=True)
class SoftmaxMargin:
  """High when the best token is far ahead of the second ("softmax response").

  confidence = p_(1) - p_(2) of softmax(logits), as in arXiv 2207.07061; 0
  when two tokens tie.
  """

  needs_logits = True
  minimum_exit_layer = 1

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself: there is nothing to check."""
    del decoder, batch_size, max_length
    return self

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1]."""
    logits = logits_of(view).astype(jnp.float32)
    best, second = best_two(logits)
    total = total_over_best(logits, best, view.log_total)
    return (1.0 - jnp.exp(second - best)) / total


@register_pytree
@dataclasses.dataclass(frozen=True)
class SoftmaxMaximum:
  """High when the best token takes most of the probability.

  confidence = p_(1) of softmax(logits), as in the official release.
  """

  needs_logits = True
  minimum_exit_layer = 1

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself: there is nothing to check."""
    del decoder, batch_size, max_length
    return self

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1]."""
    logits = logits_of(view).astype(jnp.float32)
    return 1.0 / total_over_best(logits, logits.max(axis=-1), view.log_total)


@register_pytree
@dataclasses.dataclass(frozen=True)
class StateSimilarity:
  """High when the layer hardly turned the state ("hidden-state saturation").

  confidence = max(0, cos(hidden, previous_hidden)), as in arXiv 2207.07061.
  Needs no logits. There is no check after layer 1, where the state before is
  the bare embedding.
  """

  needs_logits = False
  minimum_exit_layer = 2

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself: there is nothing to check."""
    del decoder, batch_size, max_length
    return self

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1]; 0 for a zero state."""
    hidden = view.hidden.astype(jnp.float32)
    previous = view.previous_hidden.astype(jnp.float32)
    lengths = jnp.linalg.norm(hidden, axis=-1)
    lengths *= jnp.linalg.norm(previous, axis=-1)
    product = (hidden * previous).sum(axis=-1)
    cosine = product / jnp.where(lengths > 0.0, lengths, jnp.inf)
    return jnp.clip(cosine, 0.0, 1.0)


_MEASURES = {
  'softmax_margin': SoftmaxMargin,
  'softmax_maximum': SoftmaxMaximum,
  'state_similarity': StateSimilarity,
}


def get_measure(name: str, *, classifier: Classifier | None = None) -> Measure:
  """Returns a measure by the name a command line gives it.

  Args:
    name: 'softmax_margin', 'softmax_maximum', 'state_similarity' or
      'classifier'.
    classifier: the trained weights, for 'classifier'.

  Raises:
    ValueError: if the name is unknown (the message lists the known ones) or
      'classifier' comes without weights.
  """
  if name == 'classifier':
    if classifier is None:
      raise ValueError(
        "measure 'classifier' needs trained weights; pass "
        'classifier=Classifier(kernel, bias)'
      )
    return classifier
  if name not in _MEASURES:
    known = ', '.join(sorted((*_MEASURES, 'classifier')))
    raise ValueError(f'unknown confidence measure {name!r}; known: {known}')
  return _MEASURES[name]()

"""What exits learn from besides the targets: a distribution of tokens.

Memory: its probabilities are one array of the size of one exit's logits, which
stays while the exits are walked over.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Teacher:
  """A distribution over the vocabulary that exits learn from, a constant.

  Attributes:
    probabilities: float32 [..., V].
    negative_entropy: float32 [...], sum_v q log q in nats.
  """

  probabilities: Array
  negative_entropy: Array

  def distance(self, logits: Array, log_normalizer: Array) -> Array:
    """Returns KL(q || softmax(logits)), float32 [...] in nats.

    Args:
      logits: float32 [..., V].
      log_normalizer: float32 [...], their log(Z).
    """
    expected = (self.probabilities * logits).sum(-1)
    return self.negative_entropy - expected + log_normalizer

  @classmethod
  def of_logits(cls, logits: Array) -> Self:
    """Returns the softmax of logits [..., V], as a constant."""
    logits = jax.lax.stop_gradient(logits)
    logs = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(logs)
    return cls(probabilities, (probabilities * logs).sum(-1))


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A teacher, and how much of an exit's loss is its.

  Attributes:
    teacher: the distribution to come near.
    share: float32 scalar in [0, 1]; the rest is the targets'.
  """

  teacher: Teacher
  share: Array


def mixture(teacher: Teacher | None, share: Array | None) -> Mixture | None:
  """Returns both as one; None without a teacher."""
  if teacher is None or share is None:
    return None
  return Mixture(teacher, share)

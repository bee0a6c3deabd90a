"""States of all layers pulled towards the last layer's."""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.training.forward import Forward
from calm_jax.training.losses import ExitMetrics
from calm_jax.training.objectives.wrapping import (
  WrappingObjective,
  check_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PulledStates(WrappingObjective):
  """Adds the distance of every layer's state to the last layer's.

  The distance is 1 - cos, half the mean squared difference of RMS-normed states
  (without the norm's scale, which could shrink it); a mean over the L-1 layers
  and the target tokens. The last layer's state is a constant. It is what makes
  exits by converging states possible (LEAP, arXiv 2605.01058, whose exact form
  this need not be), such as `exits.StateSimilarity`'s.

  Attributes:
    weight: of the distance, at least 0.
  """

  weight: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    check_number(self.weight, 'weight')

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss plus the weighted distance."""
    loss, metrics = self.objective.loss(forward)
    if self.weight == 0 or forward.config.num_decoder_layers == 1:
      return loss, metrics
    distance = forward.mean(distances(forward.states).mean(axis=0))
    return loss + self.weight * distance, metrics


def distances(states: Array) -> Array:
  """Returns 1 - cos of each state [L, B, T, D] to the last, [L-1, B, T]."""
  normed = _normed(states.astype(jnp.float32))
  last = jax.lax.stop_gradient(normed[-1])
  return 0.5 * jnp.square(normed[:-1] - last).mean(axis=-1)


def _normed(states: Array) -> Array:
  mean_square = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
  return states * jax.lax.rsqrt(mean_square + 1e-6)

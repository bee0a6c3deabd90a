"""A scorer of source positions: what it computes, in training and decoding.

Its weights are trained by `training.source_scorer_stage` for one frozen model;
`decoding.PrunedSource` keeps the positions that it scores best.
"""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

_EPSILON = 1e-6


@register_pytree
@dataclasses.dataclass(frozen=True)
class SourceScorer:
  """Says of each encoded source position how much it is worth reading.

  score = norm(x) . weights + bias, with norm(x) = x / rms(x), in float32. Above
  0 the position is kept.

  Attributes:
    weights: [D].
    bias: [].
  """

  weights: Array
  bias: Array

  def check(self, decoder: LayeredDecoder) -> 'SourceScorer':
    """Returns itself in float32; raises ValueError for bad numbers or shapes.

    Args:
      decoder: whose sources it is to score.
    """
    shapes = {'weights': (decoder.embed_dim,), 'bias': ()}
    return SourceScorer(
      **{
        name: checks.checked_array(
          getattr(self, name),
          f'{name} of the source scorer',
          shapes=(shape,),
          remedy='give the scorer trained with this model',
        )
        for name, shape in shapes.items()
      }
    )

  def scores(self, states: Array) -> Array:
    """Returns scores float32 [...] of encoded positions [..., D]."""
    return _norm_dot(states, self.weights) + self.bias


def _norm_dot(states: Array, weights: Array) -> Array:
  """Returns norm(states) . weights in full float32 on every backend."""
  states = states.astype(jnp.float32)
  squares = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
  normed = states * jax.lax.rsqrt(squares + _EPSILON)
  return jnp.matmul(normed, weights, precision=jax.lax.Precision.HIGHEST)

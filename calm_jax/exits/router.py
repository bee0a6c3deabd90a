"""A router: how many layers a request needs, by its encoded source alone.

Its weights are trained by `training.router_stage` for one frozen model; here
are only they and their answer, the same code in training and decoding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

_EPSILON = 1e-6
_REMEDY = 'give the router trained with this model'


@register_pytree
@dataclasses.dataclass(frozen=True)
class Router:
  """Says how likely a request needs more than k layers, for every k < L.

  P(needed > k) = sigmoid(score_k), cumulative logits of an ordinal regression.
  With norm(x) = x / rms(x), in float32,

    inner = norm(pooled) . state + log(length) * length_weights
    score = gelu(inner + hidden_bias) . out + bias, or inner + bias if linear.

  The scores have one direction for all depths (E = 1, each with a bias of its
  own) or one per depth (E = L - 1); U hidden units, E in a linear router.

  Attributes:
    bias: [L-1], by which depths differ.
    state: [D, U], of the mean state of the encoded source.
    length_weights: [U], of the logarithm of the source's tokens.
    hidden_bias: [U]; None in a linear router.
    out: [U, E]; None in a linear router.
  """

  bias: Array
  state: Array
  length_weights: Array
  hidden_bias: Array | None = None
  out: Array | None = None

  def check(self, decoder: LayeredDecoder):
    """Returns itself in float32; raises ValueError on wrong shapes."""
    width, depths = decoder.embed_dim, decoder.num_layers - 1
    if (self.out is None) != (self.hidden_bias is None):
      raise ValueError(
        'the router has one of hidden_bias and out; give both, or neither of '
        'them for a linear one'
      )
    allowed = self._shapes(width, depths)
    checked = {
      name: checks.checked_array(
        getattr(self, name),
        f'{name} of the router',
        shapes=shapes,
        remedy=f'{_REMEDY} (width {width}, {depths} depths before the last)',
      )
      for name, shapes in allowed.items()
      if getattr(self, name) is not None
    }
    # Of a linear one, whose arrays could each be of another kind.
    if checked['state'].shape[1] != checked['length_weights'].shape[0]:
      raise ValueError(
        f'state of the router has shape {list(checked["state"].shape)} and '
        f'length_weights {list(checked["length_weights"].shape)}; {_REMEDY}'
      )
    return Router(**checked)

  def _shapes(
    self, width: int, depths: int
  ) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the shapes that each array may have."""
    units = directions = (1, depths)
    if self.hidden_bias is not None:
      units = np.shape(self.hidden_bias)
      if len(units) != 1:
        raise ValueError(
          f'hidden_bias of the router has shape {list(units)}, wanted [U]; '
          f'{_REMEDY}'
        )
    of_units = tuple((size,) for size in units)
    return {
      'bias': ((depths,),),
      'state': tuple((width, size) for size in units),
      'length_weights': of_units,
      'hidden_bias': of_units,
      'out': tuple((size, last) for size in units for last in directions),
    }

  def scores(self, pooled: Array, lengths: Array) -> Array:
    """Returns the log-odds of needing more than k layers, float32 [B, L-1].

    Args:
      pooled: float32 [B, D], mean states of the sources.
      lengths: int32 [B], their tokens.
    """
    logs = jnp.log(jnp.maximum(lengths, 1).astype(jnp.float32))
    inner = _product(_norm(pooled), self.state)
    inner += logs[:, None] * self.length_weights
    if self.out is not None and self.hidden_bias is not None:
      inner = _product(jax.nn.gelu(inner + self.hidden_bias), self.out)
    return inner + self.bias

  def confidences(self, pooled: Array, lengths: Array) -> Array:
    """Returns how likely k layers suffice, k = 1..L: float32 [B, L].

    It does not fall with k, whatever the scores, and is 1 for all layers.

    Args:
      pooled: as for `scores`.
      lengths: as for `scores`.
    """
    suffice = jax.nn.sigmoid(-self.scores(pooled, lengths))
    suffice = jax.lax.cummax(suffice, axis=1)
    return jnp.pad(suffice, ((0, 0), (0, 1)), constant_values=1.0)


def _product(states: Array, kernel: Array) -> Array:
  """Returns states . kernel in full float32 on every backend."""
  return jnp.matmul(states, kernel, precision=jax.lax.Precision.HIGHEST)


def _norm(states: Array) -> Array:
  """Returns states over their root mean square, float32."""
  states = states.astype(jnp.float32)
  squares = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
  return states * jax.lax.rsqrt(squares + _EPSILON)

"""Exit adapters: what stands between an early layer's state and the head.

A model trained with its last layer's loss alone has early layers that do not
speak: their states are not what its output matrix reads. An adapter per exit
turns them towards that, by a scale per channel (the exit's own norm) and a
low-rank part, while the model stays as it is (after Balcony, arXiv 2503.05005,
and DEED, arXiv 2311.08623, which train whole layers). The weights are trained
by `training.exit_adapter_stage`; `decoding.AdaptedVocabulary` reads with them.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

_EPSILON = 1e-6


@register_pytree
@dataclasses.dataclass(frozen=True)
class ExitAdapters:
  """A map of states for every exit before the last layer, L - 1 of them.

  adapted = state * scale + rms(state) * (gelu(norm(state) . down) . up), with
  norm(x) = x / rms(x): a state of another size is adapted alike. With a scale
  of ones and `up` of zeros it is the state itself, and so it is of the last
  layer, whatever the weights, to the bit.

  Attributes:
    scale: [L-1, D].
    down: [L-1, D, R]; None, as `up`, without a low-rank part.
    up: [L-1, R, D].
  """

  scale: Array
  down: Array | None = None
  up: Array | None = None

  @classmethod
  def identity(cls, num_layers: int, size: int) -> Self:
    """Returns adapters that change nothing, of a decoder of L layers."""
    return cls(np.ones((num_layers - 1, size), np.float32))

  @property
  def num_layers(self) -> int:
    """L, of the decoder they are for."""
    return self.scale.shape[0] + 1

  @property
  def rank(self) -> int:
    """R, 0 without a low-rank part."""
    return 0 if self.down is None else self.down.shape[2]

  @property
  def products(self) -> int:
    """Products with D weights that a state takes, for the ledger."""
    return 1 + 2 * self.rank

  def check(self, decoder: LayeredDecoder) -> 'ExitAdapters':
    """Returns itself with float32 arrays.

    Raises:
      ValueError: for shapes that do not fit together, or the decoder.
    """
    scale, down, up = map(np.shape, (self.scale, self.down, self.up))
    exits, size = decoder.num_layers - 1, decoder.embed_dim
    fits = scale == (exits, size) and (self.down is None) == (self.up is None)
    if fits and self.down is not None:
      rank = down[-1] if down else 0
      fits = rank > 0 and down == (exits, size, rank)
      fits = fits and up == (exits, rank, size)
    if not fits or not exits:
      raise ValueError(
        f'the exit adapters have shapes scale {list(scale)}, down {list(down)} '
        f'and up {list(up)}; for this decoder of {decoder.num_layers} layers '
        f'they are [{exits}, {size}], [{exits}, {size}, R] and [{exits}, R, '
        f'{size}], R at least 1: give those trained with it'
      )
    return ExitAdapters(
      _checked(self.scale, 'scale'),
      None if self.down is None else _checked(self.down, 'down'),
      None if self.up is None else _checked(self.up, 'up'),
    )

  def __call__(self, hidden: Array, layer: Array | int) -> Array:
    """Returns the adapted states, in their dtype.

    Args:
      hidden: [B, D]; [..., D] where they are of one layer.
      layer: the layer that they came out of, 0..L-1: a number, traced or not,
        or int32 [B], one for each of them.
    """
    last = self.num_layers - 1
    if isinstance(layer, int):
      return hidden if layer == last else self.of_exit(hidden, layer)
    exit_number = jnp.minimum(layer, last - 1)
    if not jnp.ndim(layer):
      return lax.cond(
        layer == last,
        lambda hidden: hidden,
        lambda hidden: self.of_exit(hidden, exit_number),
        hidden,
      )
    adapted = self.of_exit(hidden, exit_number)
    return jnp.where((layer == last)[:, None], hidden, adapted)

  def of_exit(self, hidden: Array, number: Array | int) -> Array:
    """Returns the states [..., D] adapted; `number` of the exit, 0..L-2."""
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[number], self)
    return adapt(hidden, own.scale, own.down, own.up)


def adapt(
  hidden: Array, scale: Array, down: Array | None, up: Array | None
) -> Array:
  """Returns states [..., D] adapted, in their dtype.

  Args:
    hidden: [..., D].
    scale: [D], or one for each row, [B, D].
    down: [D, R] or [B, D, R]; None without a low-rank part.
    up: [R, D] or [B, R, D].
  """
  states = hidden.astype(jnp.float32)
  adapted = states * scale
  if down is not None:
    squares = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
    size = jnp.sqrt(squares + _EPSILON)
    inner = jax.nn.gelu(_product(states / size, down))
    adapted += size * _product(inner, up)
  return adapted.astype(hidden.dtype)


def _product(states: Array, matrix: Array) -> Array:
  """Returns states times a matrix, or each times its own."""
  if matrix.ndim == 3:
    return jnp.einsum('bi,bio->bo', states, matrix)
  return states @ matrix


def _checked(given: Array, name: str) -> Array:
  """Returns an array as float32; raises ValueError if a number is none."""
  return checks.checked_array(
    given,
    f'{name} of the exit adapters',
    shapes=(np.shape(given),),
    remedy='give those trained with this model',
  )

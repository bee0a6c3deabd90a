"""Exit adapters: what stands between an early layer's state and the head.

A model trained with its last layer's loss alone has early layers that do not
speak: their states are not what its output matrix reads. An adapter per exit
turns them towards that, by a scale per channel (the exit's own norm) and a
low-rank part, while the model stays as it is (after Balcony, arXiv 2503.05005,
and DEED, arXiv 2311.08623, which train whole layers; `exit_layers` has half of
one). The weights are trained by `training.exit_adapter_stage`;
`decoding.AdaptedVocabulary` reads with them.
"""

import abc
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


class AdaptsExits(abc.ABC):
  """A map of states for every exit before the last layer, L - 1 of them.

  The state of the last layer is itself, to the bit, whatever the weights. A map
  sees the state of one position and no other. Subclasses are dataclasses of
  arrays whose first axis is the exits'.

  Attributes:
    scale: [L-1, D], of the state itself.
  """

  scale: Array

  @property
  def num_layers(self) -> int:
    """L, of the decoder they are for."""
    return self.scale.shape[0] + 1

  @property
  @abc.abstractmethod
  def products(self) -> int:
    """Products with D weights that a state takes, for the ledger."""

  @abc.abstractmethod
  def check(self, decoder: LayeredDecoder) -> 'AdaptsExits':
    """Returns itself with JAX arrays.

    Raises:
      ValueError: for shapes that do not fit together, or the decoder.
    """

  @abc.abstractmethod
  def adapt(self, hidden: Array) -> Array:
    """Returns states [..., D] of one exit adapted, in their dtype.

    The arrays are that exit's, without their first axis.
    """

  @abc.abstractmethod
  def of_rows(self, hidden: Array, layer: Array) -> Array:
    """Returns the states [B, D] adapted, each of a layer of its own.

    Args:
      hidden: [B, D].
      layer: int32 [B], 0..L-1; what is returned for L-1 is not read.
    """

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
    if not jnp.ndim(layer):
      exit_number = jnp.minimum(layer, last - 1)
      return lax.cond(
        layer == last,
        lambda hidden: hidden,
        lambda hidden: self.of_exit(hidden, exit_number),
        hidden,
      )
    adapted = self.of_rows(hidden, layer)
    return jnp.where((layer == last)[:, None], hidden, adapted)

  def of_exit(self, hidden: Array, number: Array | int) -> Array:
    """Returns the states [..., D] adapted; `number` of the exit, 0..L-2."""
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[number], self)
    return own.adapt(hidden)


@register_pytree
@dataclasses.dataclass(frozen=True)
class ExitAdapters(AdaptsExits):
  """A scale and a low-rank part for every exit before the last layer.

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
      checked(self.scale, 'scale'),
      None if self.down is None else checked(self.down, 'down'),
      None if self.up is None else checked(self.up, 'up'),
    )

  def adapt(self, hidden: Array) -> Array:
    """Returns states [..., D] of one exit, or [B, D] of as many, adapted."""
    states = hidden.astype(jnp.float32)
    adapted = states * self.scale
    if self.down is not None and self.up is not None:
      normed, size = norm(states)
      inner = jax.nn.gelu(_product(normed, self.down))
      adapted += size * _product(inner, self.up)
    return adapted.astype(hidden.dtype)

  def of_rows(self, hidden: Array, layer: Array) -> Array:
    """Returns the states [B, D] adapted, each by the arrays of its exit."""
    return self.of_exit(hidden, jnp.minimum(layer, self.num_layers - 2))


def norm(states: Array) -> tuple[Array, Array]:
  """Returns float32 states [..., D] over their root mean square, and that."""
  squares = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
  size = jnp.sqrt(squares + _EPSILON)
  return states / size, size


def _product(states: Array, matrix: Array) -> Array:
  """Returns states times a matrix, or each times its own."""
  if matrix.ndim == 3:
    return jnp.einsum('bi,bio->bo', states, matrix)
  return states @ matrix


def checked(given: Array, name: str) -> Array:
  """Returns an array as float32; raises ValueError if a number is none."""
  return checks.checked_array(
    given,
    f'{name} of the exit adapters',
    shapes=(np.shape(given),),
    remedy='give those trained with this model',
  )

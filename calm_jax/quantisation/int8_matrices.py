"""A matrix in 8-bit integers, and how states are multiplied by it.

Each output channel has a scale of its own; states are brought to 8 bits on the
fly, each position with its own scale, and sums are exact in 32 bits (the
vector-wise quantisation of LLM.int8(), arXiv 2208.07339, without its outlier
columns; the activations of AQT, which T5X used). Because integers add up
exactly, a product does not depend on what else is in the batch.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.pytrees import register_pytree

_LOGGER = logging.getLogger(__name__)
_MOST = 127.0
# Of how numbers are rounded: what was written under another is made again.
RULE_VERSION = 1


@register_pytree
@dataclasses.dataclass(frozen=True)
class Int8Matrix:
  """A matrix [D, *F], stored by output channel.

  Every channel's D numbers lie side by side: XLA on CPU multiplies by them as
  fast as the other way round, cuBLAS takes int8 no other way, and channels can
  be gathered.

  Attributes:
    values: int8 [*F, D], in -127..127.
    scales: float32 [*F], above 0; channel f holds values[f] * scales[f].
  """

  values: Array
  scales: Array

  @classmethod
  def of(cls, matrix: Array, *, input_axis: int = 0) -> 'Int8Matrix':
    """Returns a float matrix, rounded to the nearest of 255 steps per channel.

    A channel of zeros stays one.

    Args:
      matrix: [D, *F] of finite numbers, or with D elsewhere.
      input_axis: which axis D is.
    """
    rows = jnp.moveaxis(jnp.asarray(matrix, jnp.float32), input_axis, -1)
    values, scales = quantise(rows)
    return cls(values, scales)

  @property
  def shape(self) -> tuple[int, ...]:
    """[*F, D]."""
    return self.values.shape

  @property
  def ndim(self) -> int:
    """How many axes `shape` has."""
    return self.values.ndim

  def take(self, channels: Array) -> Array:
    """Returns channels [B, C] of a matrix [F, D] in float32: [B, C, D].

    Multiplied by states that were `rounded`, they give what `multiply` gives.
    """
    values = jnp.take(self.values, channels, axis=0)
    scales = jnp.take(self.scales, channels, axis=0)
    return values.astype(jnp.float32) * scales[..., None]

  def cut(self, first: Array | int, count: int) -> 'Int8Matrix':
    """Returns `count` channels of a matrix [F, D] from `first` on."""
    cut = functools.partial(
      jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=count
    )
    return Int8Matrix(cut(self.values), cut(self.scales))

  def multiply(self, states: Array) -> Array:
    """Multiplies states [..., D] by the matrix: float32 [..., *F]."""
    whole, scales = quantise(states.reshape(-1, states.shape[-1]))
    sums = _sums(whole, self.values).astype(jnp.float32)
    scaled = sums * scales.reshape(-1, *[1] * (sums.ndim - 1)) * self.scales
    return scaled.reshape(*states.shape[:-1], *sums.shape[1:])

  def to_float(self) -> Array:
    """Returns what the numbers stand for, float32 [*F, D]."""
    return self.values.astype(jnp.float32) * self.scales[..., None]


def join_matrices(matrices: Sequence[Int8Matrix]) -> Int8Matrix:
  """Returns n matrices [F, D] as one, [F, n, D].

  F leads, so that it can be flattened where it is split over devices.
  """
  return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *matrices)


def quantise(rows: Array) -> tuple[Array, Array]:
  """Rounds rows to 8 bits: int8 [..., D] and their scales, float32 [...]."""
  rows = rows.astype(jnp.float32)
  largest = jnp.max(jnp.abs(rows), axis=-1)
  # Rows of zeros have a step, too; what is not finite stays so.
  scales = jnp.maximum(largest / _MOST, jnp.finfo(jnp.float32).tiny)
  return jnp.round(rows / scales[..., None]).astype(jnp.int8), scales


def rounded(rows: Array) -> Array:
  """Returns rows as 8 bits stand for them, float32 [..., D]."""
  values, scales = quantise(rows)
  return values.astype(jnp.float32) * scales[..., None]


def _sums(states: Array, values: Array) -> Array:
  """Multiplies int8 [P, D] by int8 [*F, D]: whole numbers, [P, *F]."""
  rows = states.shape[0]
  # XLA on CPU has no fast path for a single row. A number of rows that a
  # program leaves open may be one.
  alone = not isinstance(rows, int) or rows == 1
  if alone:
    states = jnp.pad(states, ((0, 1), (0, 0)))
  kind = jnp.int32
  if not has_int8_products():
    states, values = states.astype(jnp.float32), values.astype(jnp.float32)
    kind = jnp.float32
  sums = jax.lax.dot_general(
    states,
    values.reshape(-1, values.shape[-1]),
    (((1,), (1,)), ((), ())),
    preferred_element_type=kind,
  )
  sums = sums[:rows] if alone else sums
  return sums.reshape(rows, *values.shape[:-1])


def has_int8_products() -> bool:
  """Whether this backend multiplies 8-bit integers; says so once if not."""
  return _has_int8_products(jax.default_backend())


@functools.cache
def _has_int8_products(backend: str) -> bool:
  shape = jax.ShapeDtypeStruct((8, 8), jnp.int8)

  def multiply(one, other):
    return jax.lax.dot_general(
      one,
      other,
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.int32,
    )

  try:
    jax.jit(multiply).lower(shape, shape).compile()
  except Exception as error:  # whatever a backend says of what it lacks
    _LOGGER.warning(
      'the backend %s does not multiply 8-bit integers (%s): the matrices are '
      'kept in 8 bits and multiplied in float32, which is no faster than '
      'weights=None',
      backend,
      str(error).splitlines()[0] if str(error) else type(error).__name__,
    )
    return False
  return True

"""Host checks of numbers that users give.

Numbers arrive from Python, NumPy, JAX or gin (which checks no types) and may be
traced when a caller jits the whole decode. A concrete number is looked at here,
at the entry of decoding, and becomes a strongly typed array, so that a new
value never compiles a new program; a traced one passes unchecked. JAX is
imported where an array is made: statistics check numbers without it.
"""

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  import jax


def is_concrete(value: Any) -> bool:
  """Returns whether `value` can be looked at on the host."""
  import jax.core

  return not isinstance(value, jax.core.Tracer)


# Of float32. An infinite weight makes NaN of a state that is 0.
_LARGEST = np.finfo(np.float32).max


def checked_array(
  value: Any,
  name: str,
  *,
  shapes: tuple[tuple[int, ...], ...] = ((),),
  low: float | np.floating = -_LARGEST,
  high: float | np.floating = _LARGEST,
  dtype: Any = None,
  remedy: str,
) -> 'jax.Array':
  """Returns `value` as an array of `dtype`, after looking at its numbers.

  Args:
    value: a number, NumPy or JAX array, or tracer.
    name: what to call it in errors.
    shapes: the allowed shapes.
    low: the smallest allowed number; any finite one if not given.
    high: the largest allowed number; likewise.
    dtype: float32 (if None) or int32; int32 refuses numbers that are not whole.
    remedy: what the reader of an error should do instead.

  Raises:
    ValueError: if it is not numeric, has another shape, or holds a number
      outside [low, high] (NaN is outside); the message names it.
  """
  import jax.numpy as jnp

  dtype = jnp.float32 if dtype is None else dtype
  if not is_concrete(value):
    _check_shape(value.shape, name, shapes, remedy)
    return value.astype(dtype)
  numbers = np.asarray(value)
  if not jnp.issubdtype(numbers.dtype, np.number):
    raise ValueError(f'{name} {value!r} is not a number; {remedy}')
  _check_shape(numbers.shape, name, shapes, remedy)
  inside = (numbers >= low) & (numbers <= high)
  if not inside.all():
    bad = numbers[~inside].flat[0] if numbers.ndim else numbers
    raise ValueError(f'{name} {bad} is outside [{low}, {high}]; {remedy}')
  if jnp.issubdtype(dtype, jnp.integer) and (numbers != np.rint(numbers)).any():
    raise ValueError(f'{name} {value!r} is not a whole number; {remedy}')
  return jnp.asarray(value, dtype)


def _check_shape(shape, name, shapes, remedy):
  if tuple(shape) not in shapes:
    allowed = ' or '.join(str(list(allowed)) for allowed in shapes)
    raise ValueError(
      f'{name} has shape {list(shape)}, wanted {allowed}; {remedy}'
    )


def check_whole(value: Any, name: str, *, low: int, high: int | None = None):
  """Checks a number that is part of the program: a whole Python one.

  Raises:
    ValueError: naming it, if it is not whole or not in low..high.
  """
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  if not whole or value < low or (high is not None and value > high):
    limit = f'at least {low}' if high is None else f'in {low}..{high}'
    raise ValueError(f'{name} {value!r} must be a whole number {limit}')


def is_number(value: Any) -> bool:
  """Whether it is one real number, Python's or NumPy's, not True or False."""
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_thresholds(thresholds: Sequence[float]) -> None:
  """Raises ValueError for a threshold that is none in [0, 1], NaN too."""
  for one in thresholds:
    if not is_number(one) or not 0.0 <= one <= 1.0:
      raise ValueError(
        f'threshold {one!r} is outside [0, 1]; give some from 0 to 1, which is '
        'the most careful'
      )


def check_no_class(value: Any, name: str) -> None:
  """Raises TypeError for a class where an object of it is wanted."""
  if isinstance(value, type):
    raise TypeError(
      f'{name} is the class {value.__name__}, written without parentheses; '
      f'give an object of it, {value.__name__}(...)'
    )

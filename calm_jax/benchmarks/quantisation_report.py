"""What 8 bits do to a T5, matrix by matrix and as a whole, teacher forced."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.benchmarks.quantisation_captures import (
  Batch,
  captured_states,
  matrix_at,
  teacher_forced_logits,
  where_real,
)
from calm_jax.benchmarks.quantisation_table import MatrixError
from calm_jax.quantisation import Int8Matrix, Int8Weights, rounded

# Takes every matrix that the report looks at.
DECODER = Int8Weights()
_EXACT = functools.partial(jnp.matmul, precision='highest')


@dataclasses.dataclass
class _Sums:
  """What is added up for one matrix, over batches.

  Attributes:
    squares: of the products and of their three errors, float [4].
    largest: |x| of each input channel, float [D].
    sizes: root mean squares of the real positions, batch by batch.
  """

  squares: np.ndarray
  largest: np.ndarray
  sizes: list[np.ndarray]


def matrix_errors(
  config: model.T5Config,
  params: Params,
  batches: Iterable[Batch],
  *,
  weights: Int8Weights = DECODER,
) -> tuple[list[MatrixError], dict[str, np.ndarray]]:
  """Returns the errors of all matrices, the largest first.

  Args:
    config: the model's shape.
    params: its parameters, float.
    batches: what it is teacher forced with.
    weights: whose matrices are looked at.

  Returns:
    The errors, and path -> largest |x| of each input channel, [D].
  """
  found: dict[str, _Sums] = {}
  capture = jax.jit(functools.partial(captured_states, config))
  for batch in batches:
    for path, states in capture(params, *batch).items():
      if weights.takes(path):
        real = where_real(path, batch)
        squares, largest, sizes = jax.device_get(
          _sums(states, matrix_at(config, params, path), real)
        )
        sums = found.setdefault(path, _Sums(np.zeros(4), np.zeros(1), []))
        sums.squares = sums.squares + squares.astype(np.float64)
        sums.largest = np.maximum(sums.largest, largest)
        sums.sizes.append(sizes[real.reshape(-1)])
  errors = [_error(path, sums) for path, sums in found.items()]
  errors.sort(key=lambda error: error.both, reverse=True)
  return errors, {path: sums.largest for path, sums in found.items()}


def matrices_above(
  errors: Iterable[MatrixError], threshold: float
) -> tuple[str, ...]:
  """Returns what `Int8Weights.keep` takes to leave matrices in float.

  Args:
    errors: of `matrix_errors`.
    threshold: relative errors above it are kept out, 0.05 for 5 %.

  >>> bad = MatrixError('decoder/layers_0/mlp/wo', 0.2, 0.0, 0.2, 60.0)
  >>> matrices_above([bad], 0.05), matrices_above([bad], 0.5)
  (('decoder/layers_0/mlp/wo',), ())
  """
  return tuple(re.escape(one.path) for one in errors if one.both > threshold)


def model_errors(
  config: model.T5Config,
  params: Params,
  trees: Mapping[str, Params],
  batches: Sequence[Batch],
) -> Iterator[tuple[str, float, float]]:
  """Yields what comes of other parameters, teacher forced.

  Args:
    config: the model's shape.
    params: its parameters, float.
    trees: name -> parameters, in 8 bits or not.
    batches: what both are teacher forced with.

  Yields:
    Name, relative error of the logits, and the share of positions at which
    another token has the largest logit.
  """
  run = jax.jit(functools.partial(teacher_forced_logits, config))
  sums = {name: np.zeros(4) for name in trees}
  for batch in batches:
    expected = run(params, *batch)
    for name, tree in trees.items():
      compared = _compare(run(tree, *batch), expected, batch.outputs > 0)
      sums[name] = sums[name] + np.asarray(compared, np.float64)
  for name, (error, whole, others, positions) in sums.items():
    yield name, math.sqrt(error / whole), others / positions


@jax.jit
def _sums(states: Array, kernel: Array, real: Array) -> tuple[Array, ...]:
  """Returns what `_Sums` adds up, of one batch; padding counts as zeros."""
  states = jnp.where(real[..., None], states.astype(jnp.float32), 0)
  states = states.reshape(-1, states.shape[-1])
  kernel = kernel.astype(jnp.float32)
  matrix = Int8Matrix.of(kernel)
  whole = _EXACT(states, kernel)
  products = (
    jnp.zeros_like(whole),
    matrix.multiply(states),
    _EXACT(states, matrix.to_float().T),
    _EXACT(rounded(states), kernel),
  )
  squares = jnp.stack([jnp.sum((whole - one) ** 2) for one in products])
  sizes = jnp.sqrt(jnp.mean(states**2, axis=-1))
  return squares, jnp.max(jnp.abs(states), axis=0), sizes


def _error(path: str, sums: _Sums) -> MatrixError:
  whole, *errors = sums.squares
  both, weights, states = (
    float(np.sqrt(error / whole)) if whole else 0.0 for error in errors
  )
  size = float(np.median(np.concatenate(sums.sizes)))
  outlier = float(sums.largest.max()) / size if size else math.nan
  return MatrixError(path, both, weights, states, outlier)


@jax.jit
def _compare(logits: Array, expected: Array, real: Array) -> Array:
  """Returns squares of errors and of logits, other argmaxes, positions."""
  real_logits = real[..., None]
  others = (jnp.argmax(logits, -1) != jnp.argmax(expected, -1)) & real
  return jnp.stack(
    [
      jnp.sum(jnp.where(real_logits, logits - expected, 0) ** 2),
      jnp.sum(jnp.where(real_logits, expected, 0) ** 2),
      jnp.sum(others),
      jnp.sum(real),
    ]
  )

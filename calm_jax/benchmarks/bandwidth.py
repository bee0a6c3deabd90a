"""How fast this machine reads memory, by what a decode step does: a product."""

import statistics

import jax
import jax.numpy as jnp

from calm_jax.evaluation import stopwatch

_ROWS, _COLUMNS = 65536, 1024


def prepare_read():
  """Returns a function that reads `read_bytes()` once, compiled."""
  matrix = jnp.full((_ROWS, _COLUMNS), 0.5, jnp.float32)
  vector = jnp.ones((_COLUMNS,), jnp.float32)
  product = jax.jit(lambda matrix, vector: matrix @ vector)
  jax.block_until_ready(product(matrix, vector))
  return lambda: product(matrix, vector)


def read_bytes() -> int:
  """Returns how many bytes one read is."""
  return 4 * _ROWS * _COLUMNS


def measure(num_repeats: int = 7) -> float:
  """Returns gigabytes per second of a float32 matrix-vector product."""
  seconds = stopwatch.interleaved_seconds({'read': prepare_read()}, num_repeats)
  return read_bytes() / statistics.median(seconds['read']) / 1e9

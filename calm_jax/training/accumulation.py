"""The gradient of a large batch from parts that fit into memory.

One jitted step walks over the parts of its batch and adds up their gradients,
so that activations of one part at a time are alive. What it returns is the
gradient of the whole batch, not a mean of the parts' means: the loss is divided
by what the whole batch is divided by.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, Params
from calm_jax.training.losses import ExitMetrics

Batch = Mapping[str, Array]
# ((loss, metrics), gradients), as `jax.value_and_grad(..., has_aux=True)` does.
Gradients = tuple[tuple[Array, ExitMetrics], Params]
# `(part of the batch, its dropout key or None) -> Gradients`.
GradientFn = Callable[[Batch, Array | None], Gradients]


def accumulate(
  gradient_fn: GradientFn,
  batch: Batch,
  *,
  num_microbatches: int,
  dropout_rng: Array | None,
) -> Gradients:
  """Returns what `gradient_fn` would of the whole batch.

  Exactly so up to the order of additions, but for dropout, which draws per
  part.

  Args:
    gradient_fn: of one part. Its loss must be a sum over tokens divided by
      something that is the same for all parts.
    batch: arrays that lead with B.
    num_microbatches: how many parts; must divide B.
    dropout_rng: a PRNG key that is split over the parts, or None.

  Raises:
    ValueError: if the batch does not divide.
  """
  parts = split_batch(batch, num_microbatches)
  rngs = None
  if dropout_rng is not None:
    rngs = jax.random.split(dropout_rng, num_microbatches)

  def sums_of(part, rng):
    (loss, metrics), gradients = gradient_fn(part, rng)
    return (loss, _times_tokens(metrics)), gradients

  def add_part(sums, part_and_rng):
    return jax.tree.map(jnp.add, sums, sums_of(*part_and_rng)), None

  first = jax.tree.map(lambda leaf: leaf[0], (parts, rngs))
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(sums_of, *first),
  )
  sums, _ = jax.lax.scan(add_part, zeros, (parts, rngs))
  (loss, metrics), gradients = sums
  return (loss, _per_token(metrics)), gradients


def split_batch(batch: Batch, num_microbatches: int) -> Batch:
  """Returns arrays [B, ...] as [num_microbatches, B / num_microbatches, ...].

  Part p takes rows p, p + num_microbatches, ..., and not neighbours: where the
  rows of a batch lie on several devices, every part then lies on all of them.

  Raises:
    ValueError: if the batch does not divide.
  """
  batch_size = next(iter(batch.values())).shape[0]
  if batch_size % num_microbatches:
    raise ValueError(
      f'a batch of {batch_size} rows does not divide into num_microbatches = '
      f'{num_microbatches} parts; choose a divisor of the batch size'
    )

  def split(array):
    array = jnp.asarray(array)
    return jnp.moveaxis(
      array.reshape(-1, num_microbatches, *array.shape[1:]), 1, 0
    )

  return {key: split(array) for key, array in batch.items()}


def _times_tokens(metrics: ExitMetrics) -> ExitMetrics:
  """Turns means over tokens into sums, which can be added."""
  tokens = jnp.maximum(metrics.num_tokens, 1.0)
  return ExitMetrics(
    losses=metrics.losses * tokens,
    accuracies=metrics.accuracies * tokens,
    num_tokens=metrics.num_tokens,
  )


def _per_token(sums: ExitMetrics) -> ExitMetrics:
  tokens = jnp.maximum(sums.num_tokens, 1.0)
  return ExitMetrics(
    losses=sums.losses / tokens,
    accuracies=sums.accuracies / tokens,
    num_tokens=sums.num_tokens,
  )

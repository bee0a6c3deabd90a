"""Training batches from a file of token ids, with NumPy alone.

Like `calm_jax.data.train_batches`, for machines on which TensorFlow is not
installed: T5X's keys, the same order for the same seed (though not the order
that TensorFlow would draw), an exact `skip` that costs next to nothing.
"""

import collections
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from calm_jax.data.token_files import FEATURES, read_npz

Batch = dict[str, np.ndarray]


def npz_batches(
  path: str | os.PathLike,
  batch_size: int,
  *,
  feature_lengths: Mapping[str, int] | None = None,
  seed: int = 0,
  length_buckets: Sequence[tuple[int, int]] = (),
  skip: int = 0,
  num_epochs: int | None = None,
  shuffle: bool = True,
  num_shards: int = 1,
  shard_id: int = 0,
) -> Iterator[Batch]:
  """Returns an iterator of batches of a file that `write_npz` made.

  Args:
    path: the file; it is read into memory whole.
    batch_size: rows of every batch, all processes together.
    feature_lengths: longest `inputs` and `targets` in tokens; the longest of
      the file if None. Longer examples are cut, with one warning.
    seed: of the order; each epoch has its own.
    length_buckets: as for `calm_jax.data.train_batches`; none by default.
    skip: batches consumed by an earlier run with the same arguments; none of
      them is made again.
    num_epochs: passes over the file; None repeats forever. The last batches of
      a finite run are filled up with rows of zeros.
    shuffle: False for the order of the file, as for evaluation.
    num_shards: processes that share each batch; must divide `batch_size`.
    shard_id: which of them this is; rows of the processes, in this order, are
      the batch that a single process would get.

  Returns:
    An iterator of dicts: encoder_input_tokens int32 [B, S],
    decoder_input_tokens and decoder_target_tokens int32 [B, T],
    decoder_loss_weights float32 [B, T], and num_valid, the number of real rows,
    which come first. B is batch_size / num_shards.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: on a truncated or foreign file, an id below 0, or a bad number.
  """
  _check_numbers(batch_size, num_shards, shard_id, skip, num_epochs)
  columns = read_npz(path)
  sizes = np.stack(
    [np.diff(columns[f'{name}_offsets']) for name in FEATURES], axis=1
  )
  lengths = _lengths(feature_lengths, sizes, path)
  buckets = _buckets(length_buckets, lengths)
  fits = (sizes[:, None, :] <= np.array(buckets)).all(axis=-1)
  # What fits nowhere is cut to the last one.
  fits[:, -1] = True
  plan = _plan(
    fits.argmax(axis=1),
    batch_size,
    seed=seed if shuffle else None,
    num_epochs=num_epochs,
  )
  rows = batch_size // num_shards
  mine = slice(shard_id * rows, (shard_id + 1) * rows)
  return (
    _batch(columns, chosen[mine], rows, buckets[bucket])
    for bucket, chosen in itertools.islice(plan, skip, None)
  )


def _check_numbers(batch_size, num_shards, shard_id, skip, num_epochs) -> None:
  least = {'batch_size': 1, 'num_shards': 1, 'skip': 0, 'num_epochs': 1}
  numbers = dict(
    batch_size=batch_size,
    num_shards=num_shards,
    skip=skip,
    num_epochs=1 if num_epochs is None else num_epochs,
  )
  for name, number in numbers.items():
    if number < least[name]:
      raise ValueError(f'{name} is {number}; it must be {least[name]} or more.')
  if batch_size % num_shards:
    raise ValueError(
      f'batch_size is {batch_size}, which {num_shards} shards cannot share '
      'evenly; it counts the rows of all processes together.'
    )
  if not 0 <= shard_id < num_shards:
    raise ValueError(
      f'shard_id is {shard_id}; it must be at least 0 and below num_shards, '
      f'{num_shards}.'
    )


def _lengths(feature_lengths, sizes: np.ndarray, path) -> tuple[int, int]:
  longest = dict(zip(FEATURES, sizes.max(axis=0).tolist(), strict=True))
  lengths = {**longest, **(feature_lengths or {})}
  if set(lengths) != set(FEATURES) or min(lengths.values()) < 1:
    raise ValueError(
      f'feature_lengths is {dict(feature_lengths)}; it must give positive '
      f'lengths of {FEATURES}.'
    )
  lengths = tuple(lengths[name] for name in FEATURES)
  too_long = int((sizes > lengths).any(axis=1).sum())
  if too_long:
    logging.warning(
      '%d of %d examples of %s are longer than %s tokens and are cut; raise '
      'feature_lengths to keep them whole.',
      too_long,
      len(sizes),
      os.fspath(path),
      dict(zip(FEATURES, lengths, strict=True)),
    )
  return lengths


def _buckets(length_buckets, last: tuple[int, int]) -> list[tuple[int, int]]:
  """Returns the buckets that fit into `last`, which is the last one."""
  buckets = [tuple(map(int, bucket)) for bucket in length_buckets]
  if any(len(bucket) != 2 or min(bucket) < 1 for bucket in buckets):
    raise ValueError(
      f'length_buckets is {length_buckets}; it must hold pairs of positive '
      '(inputs, targets) lengths.'
    )
  smaller = {
    bucket
    for bucket in buckets
    if bucket != last and all(map(int.__le__, bucket, last))
  }
  return [*sorted(smaller), last]


def _plan(
  bucket_of: np.ndarray,
  batch_size: int,
  *,
  seed: int | None,
  num_epochs: int | None,
) -> Iterator[tuple[int, list[int]]]:
  """Yields the bucket and the examples of one batch after the other.

  Examples that do not fill a batch at the end of an epoch wait for the next.
  """
  waiting = collections.defaultdict(list)
  epochs = itertools.count() if num_epochs is None else range(num_epochs)
  for epoch in epochs:
    order = np.arange(len(bucket_of))
    if seed is not None:
      order = np.random.default_rng([seed, epoch]).permutation(order)
    for index in order.tolist():
      bucket = int(bucket_of[index])
      waiting[bucket].append(index)
      if len(waiting[bucket]) == batch_size:
        yield bucket, waiting.pop(bucket)
  for bucket in sorted(waiting):
    yield bucket, waiting[bucket]


def _batch(
  columns: Mapping[str, np.ndarray],
  chosen: Sequence[int],
  rows: int,
  lengths: tuple[int, int],
) -> Batch:
  """Returns one padded batch of the chosen examples."""
  padded = {}
  for name, length in zip(FEATURES, lengths, strict=True):
    ids, offsets = columns[f'{name}_ids'], columns[f'{name}_offsets']
    padded[name] = np.zeros((rows, length), np.int32)
    for row, index in enumerate(chosen):
      tokens = ids[offsets[index] : offsets[index + 1]][:length]
      padded[name][row, : len(tokens)] = tokens
  targets = padded['targets']
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  return {
    'encoder_input_tokens': padded['inputs'],
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
    'num_valid': len(chosen),
  }

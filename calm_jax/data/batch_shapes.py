"""What callers ask of batches: checked, and made into rows and shapes."""

from collections.abc import Mapping, Sequence

from calm_jax.data.token_files import FEATURES

DEFAULT_LENGTHS = {'inputs': 64, 'targets': 64}


def shard_rows(batch_size: int, num_shards: int, shard_id: int) -> slice:
  """Returns which rows of every batch belong to a process."""
  check_positive(batch_size=batch_size, num_shards=num_shards)
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
  rows = batch_size // num_shards
  return slice(shard_id * rows, (shard_id + 1) * rows)


def checked_lengths(
  feature_lengths: Mapping[str, int] | None,
  default: Mapping[str, int] = DEFAULT_LENGTHS,
) -> dict[str, int]:
  """Returns the lengths of both features, the defaults where none is given."""
  lengths = {**default, **(feature_lengths or {})}
  unknown = sorted(set(lengths) - set(FEATURES))
  if unknown:
    raise ValueError(f'feature_lengths names {unknown}; use {FEATURES}.')
  for name, length in lengths.items():
    if length < 1:
      raise ValueError(
        f'{name} is {length} in feature_lengths; it must be 1 or more.'
      )
  return lengths


def buckets_within(
  length_buckets: Sequence[Sequence[int]], lengths: Mapping[str, int]
) -> list[tuple[int, int]]:
  """Returns the buckets that fit into `lengths`, which is the last one."""
  last = tuple(lengths[name] for name in FEATURES)
  buckets = [tuple(map(int, bucket)) for bucket in length_buckets]
  if any(len(bucket) != 2 or min(bucket) < 1 for bucket in buckets):
    raise ValueError(
      f'length_buckets is {length_buckets}; it must hold pairs of positive '
      '(inputs, targets) lengths.'
    )
  smaller = sorted(
    {
      bucket
      for bucket in buckets
      if bucket != last and all(map(int.__le__, bucket, last))
    }
  )
  return [*smaller, last]


def check_order(skip: int, num_epochs: int | None) -> None:
  """Checks where in a stream of examples to begin, and where to end."""
  if skip < 0:
    raise ValueError(f'skip is {skip}; it must be 0 or more.')
  if num_epochs is not None:
    check_positive(num_epochs=num_epochs)


def check_positive(**numbers: int) -> None:
  """Raises ValueError naming the first number that is not positive."""
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f'{name} is {number}; it must be 1 or more.')

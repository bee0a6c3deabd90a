"""Training batches from a file of token ids, with NumPy alone.

Like `calm_jax.data.train_batches`, for machines on which TensorFlow is not
installed: T5X's keys, the same order for the same seed (though not the order
that TensorFlow would draw), an exact `skip` that costs next to nothing.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from calm_jax.data import batch_shapes, batches
from calm_jax.data.token_files import FEATURES, read_npz


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
) -> Iterator[batches.Batch]:
  """Returns an iterator of batches of a file that `write_npz` made.

  Args:
    path: the file; it is read into memory whole.
    batch_size: rows of every batch, all processes together.
    feature_lengths: longest `inputs` and `targets` in tokens; the longest of
      the file if None. Longer examples are cut, with one warning: inputs keep
      their EOS, targets end without.
    seed: of the order; each epoch has its own.
    length_buckets: as in `calm_jax.data.DataPlan`; none by default.
    skip: batches consumed by an earlier run with the same arguments; none of
      them is made again.
    num_epochs: passes over the file; None repeats forever. The last batches of
      a finite run are filled up with rows of zeros.
    shuffle: False for the order of the file, as for evaluation.
    num_shards: processes that share each batch; must divide `batch_size`.
    shard_id: which of them this is; rows of the processes, in this order, are
      the batch that a single process would get.

  Returns:
    An iterator of the dicts of `batches.make_batch`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: on a truncated or foreign file, an id below 0, or a bad number.
  """
  batch_shapes.shard_rows(batch_size, num_shards, shard_id)
  batch_shapes.check_order(skip, num_epochs)
  columns = read_npz(path)
  sizes = np.stack(
    [np.diff(columns[f'{name}_offsets']) for name in FEATURES], axis=1
  )
  lengths = batch_shapes.checked_lengths(
    feature_lengths,
    dict(zip(FEATURES, sizes.max(axis=0).tolist(), strict=True)),
  )
  buckets = batch_shapes.buckets_within(length_buckets, lengths)
  too_long = (sizes > buckets[-1]).any(axis=1).sum()
  batches.report_too_long(too_long, len(sizes), lengths, os.fspath(path))
  made = batches.batch_examples(
    _in_order(columns, seed=seed if shuffle else None, num_epochs=num_epochs),
    batch_size,
    buckets,
    skip=skip,
    num_shards=num_shards,
    shard_id=shard_id,
  )
  return (batch for batch, _ in made)


def _in_order(
  columns: Mapping[str, np.ndarray], *, seed: int | None, num_epochs: int | None
) -> Iterator[batches.Example]:
  """Yields the examples, epoch after epoch; in the file's order without seed.

  Examples that do not fill a batch at the end of an epoch wait for the next.
  """
  pairs = {
    name: (columns[f'{name}_ids'], columns[f'{name}_offsets'])
    for name in FEATURES
  }
  order = np.arange(len(columns['inputs_offsets']) - 1)
  epochs = itertools.count() if num_epochs is None else range(num_epochs)
  for epoch in epochs:
    chosen = order
    if seed is not None:
      chosen = np.random.default_rng([seed, epoch]).permutation(order)
    for index in chosen.tolist():
      yield {
        name: ids[offsets[index] : offsets[index + 1]]
        for name, (ids, offsets) in pairs.items()
      }

"""Batches of NumPy arrays with T5X's keys, from any seqio Task of text.

Training batches come shuffled over the whole split, grouped by length so that
little of a batch is padding, or packed, and in the same order for the same
seed, so that a run can go on where it stopped. Evaluation batches come in the
Task's order and carry the texts; every example counts once. Of several
processes each gets its rows of every batch.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from calm_jax.data.batch_shapes import (
  check_order,
  check_positive,
  checked_lengths,
  shard_rows,
)
from calm_jax.data.batches import (
  Batch,
  batch_examples,
  fill_rows,
  report_too_long,
)
from calm_jax.data.plan import DataPlan
from calm_jax.data.seqio.preprocessors import as_text, unpack_references
from calm_jax.data.seqio.tasks import inputs_cut_of
from calm_jax.data.seqio.tensorflow_setup import seqio
from calm_jax.data.seqio.token_datasets import FEATURES, for_training, in_order
from calm_jax.tokenizer import KEEPS_EOS


def train_batches(
  task,
  plan: DataPlan,
  *,
  seed: int = 0,
  split: str = 'train',
  skip: int = 0,
  num_epochs: int | None = None,
  num_shards: int = 1,
  shard_id: int = 0,
) -> Iterator[Batch]:
  """Returns an iterator of training batches.

  Args:
    task: a seqio Task or Mixture, its name, or a definition such as
      `JsonlTask`. A Mixture is drawn from at its rates.
    plan: rows, lengths and packing of the batches.
    seed: of the order; the same seed gives the same batches.
    split: the split to read.
    skip: batches consumed by an earlier run with the same arguments. Their
      examples are drawn and thrown away, which takes a while where many were
      consumed.
    num_epochs: passes over the split; None repeats forever. The last batches of
      a finite run are filled up with rows of zeros.
    num_shards: processes that share each batch; must divide its rows.
    shard_id: which of them this is, 0..num_shards-1. Rows of the processes, in
      this order, are the batch that a single process would get: shapes agree
      at every step. Every process reads all of the split.

  Returns:
    An iterator of the dicts of `data.batches.make_batch`; (S, T) is one of the
    buckets. With `plan.pack`, without num_valid and besides:
    encoder_segment_ids and encoder_positions int32 [B, S], decoder_segment_ids
    and decoder_positions int32 [B, T]; segments count from 1 in each row, 0 is
    padding.

  Raises:
    ValueError: on an unknown split or a bad number.
    FileNotFoundError: if `plan.use_cached` and there is no cache.
  """
  rows = shard_rows(plan.batch_size, num_shards, shard_id)
  check_order(skip, num_epochs)
  dataset = for_training(task, split, plan, seed=seed, num_epochs=num_epochs)
  if plan.pack:
    dataset = _packed(dataset, plan.lengths, plan.batch_size)
    return (
      _to_packed_batch(arrays, plan.batch_size, rows)
      for arrays in dataset.skip(skip).prefetch(4).as_numpy_iterator()
    )
  made = batch_examples(
    _ids(dataset),
    plan.batch_size,
    plan.buckets,
    skip=skip,
    num_shards=num_shards,
    shard_id=shard_id,
    inputs_cut=inputs_cut_of(task, plan.inputs_cut),
  )
  return (batch for batch, _ in made)


def eval_batches(
  task,
  batch_size: int,
  *,
  feature_lengths: Mapping[str, int] | None = None,
  split: str = 'validation',
  on_too_long: str = 'truncate',
  max_examples: int | None = None,
  num_shards: int = 1,
  shard_id: int = 0,
  use_cached: bool = False,
  inputs_cut: str = KEEPS_EOS,
) -> Iterator[dict]:
  """Returns an iterator over a split once, in the Task's order.

  A Mixture's Tasks come one after the other, each example once whatever the
  rates; give a Task to have it alone.

  Args:
    task: a seqio Task or Mixture, its name, or a definition.
    batch_size: rows of every batch, all processes together; the last is filled
      up with rows of zeros.
    feature_lengths: as in `DataPlan`.
    split: the split to read.
    on_too_long: 'truncate' cuts longer examples with one warning that counts
      them; 'error' refuses them.
    max_examples: stop after so many; None for all.
    num_shards: as for `train_batches`. All processes get the same number of
      batches; in the last one the later processes may have no real row.
    shard_id: as for `train_batches`.
    use_cached: as in `DataPlan`.
    inputs_cut: as in `DataPlan`.

  Returns:
    An iterator of the dicts of `data.batches.make_batch`, all of one shape, and
    besides, for real rows only, `inputs_text`, `targets_text` (lists of str)
    and `references` (a list of lists of str).

  Raises:
    ValueError: on an unknown split, a bad number, or an example longer than
      `feature_lengths` with on_too_long='error'.
    FileNotFoundError: if `use_cached` and there is no cache.
  """
  lengths = checked_lengths(feature_lengths)
  shard_rows(batch_size, num_shards, shard_id)
  if on_too_long not in ('truncate', 'error'):
    raise ValueError(
      f"on_too_long is {on_too_long!r}; use 'truncate' or 'error'."
    )
  dataset = in_order(task, split, use_cached=use_cached)
  if max_examples is not None:
    check_positive(max_examples=max_examples)
    dataset = dataset.take(max_examples)
  examples = list(dataset.as_numpy_iterator())
  report_too_long(
    sum(
      any(len(example[name]) > lengths[name] for name in FEATURES)
      for example in examples
    ),
    len(examples),
    lengths,
    f'split {split!r}',
    refuse=on_too_long == 'error',
  )
  return example_batches(
    examples,
    batch_size,
    lengths,
    num_shards=num_shards,
    shard_id=shard_id,
    inputs_cut=inputs_cut_of(task, inputs_cut),
  )


def example_batches(
  examples: Sequence[Mapping],
  batch_size: int,
  feature_lengths: Mapping[str, int],
  *,
  num_shards: int = 1,
  shard_id: int = 0,
  inputs_cut: str = KEEPS_EOS,
) -> Iterator[dict]:
  """Returns evaluation batches of examples already in memory, in their order.

  Args:
    examples: a Task's examples as NumPy values; longer ones are cut.
    batch_size: rows of every batch; the last is filled up with rows of zeros.
    feature_lengths: longest inputs and targets in tokens.
    num_shards: as for `eval_batches`.
    shard_id: as for `eval_batches`.
    inputs_cut: see `data.batches.make_batch`.

  Returns:
    An iterator of the dicts of `eval_batches`.
  """
  made = batch_examples(
    examples,
    batch_size,
    [tuple(feature_lengths[name] for name in FEATURES)],
    num_shards=num_shards,
    shard_id=shard_id,
    inputs_cut=inputs_cut,
  )
  for batch, rows in made:
    yield {
      **batch,
      'inputs_text': [as_text(row['inputs_pretokenized']) for row in rows],
      'targets_text': [as_text(row['targets_pretokenized']) for row in rows],
      'references': [unpack_references(row) for row in rows],
    }


def _ids(dataset) -> Iterator[dict[str, np.ndarray]]:
  """Yields `inputs` and `targets` of a dataset of them, in its order.

  They come out of TensorFlow by the hundred, which takes a tenth of the time.
  """
  for part in dataset.ragged_batch(256).prefetch(4).as_numpy_iterator():
    for ids in zip(*(part[name] for name in FEATURES), strict=True):
      yield dict(zip(FEATURES, ids, strict=True))


def _packed(dataset, lengths, batch_size):
  """Batches rows of several examples each, with seqio's packing."""
  converter = seqio.EncDecFeatureConverter(pack=True)
  return converter(dataset, lengths).batch(batch_size)


def _to_packed_batch(arrays, batch_size, rows):
  """Returns the rows of one process of a batch, which may be the last."""
  weights = 'decoder_loss_weights'
  batch = {
    name: fill_rows(array.astype(np.int32), batch_size)[rows]
    for name, array in arrays.items()
  }
  return {**batch, weights: batch[weights].astype(np.float32)}

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
  buckets_within,
  check_positive,
  checked_lengths,
  shard_rows,
)
from calm_jax.data.seqio.preprocessors import as_text, unpack_references
from calm_jax.data.seqio.tensorflow_setup import seqio, tf
from calm_jax.data.seqio.token_datasets import (
  FEATURES,
  for_training,
  in_order,
  report_too_long,
)

DEFAULT_BUCKETS = ((16, 16), (32, 32), (64, 64))

Batch = dict[str, np.ndarray]


def train_batches(
  task,
  batch_size: int,
  *,
  feature_lengths: Mapping[str, int] | None = None,
  seed: int = 0,
  split: str = 'train',
  length_buckets: Sequence[tuple[int, int]] = DEFAULT_BUCKETS,
  skip: int = 0,
  num_epochs: int | None = None,
  pack: bool = False,
  num_shards: int = 1,
  shard_id: int = 0,
  shuffle_buffer: int | None = None,
  use_cached: bool = False,
) -> Iterator[Batch]:
  """Returns an iterator of training batches.

  Args:
    task: a seqio Task or Mixture, its name, or a definition such as
      `JsonlTask`. A Mixture is drawn from at its rates.
    batch_size: rows of every batch, all processes together.
    feature_lengths: longest `inputs` and `targets` in tokens, EOS included;
      64 each if None. Longer examples are cut (and lose EOS), with one warning
      that counts them.
    seed: of the order; the same seed gives the same batches.
    split: the split to read.
    length_buckets: (inputs, targets) lengths, growing; an example goes into
      the first bucket it fits. Buckets above `feature_lengths` are left out and
      `feature_lengths` is always the last one, so there are at most
      len(length_buckets) + 1 array shapes.
    skip: batches consumed by an earlier run with the same arguments. They are
      made and thrown away, which takes a while where many were consumed.
    num_epochs: passes over the split; None repeats forever. The last batches of
      a finite run are filled up with rows of zeros.
    pack: whether to put several examples into a row, as seqio does; all batches
      then have `feature_lengths`, and `length_buckets` are not used.
    num_shards: processes that share each batch; must divide `batch_size`.
    shard_id: which of them this is, 0..num_shards-1. Rows of the processes, in
      this order, are the batch that a single process would get: shapes agree
      at every step. Every process reads all of the split.
    shuffle_buffer: see `token_datasets.for_training`: splits of more than
      250,000 examples are streamed, smaller ones kept in memory as ids.
    use_cached: whether to read seqio's offline cache, see
      `calm_jax.data.seqio.caching`.

  Returns:
    An iterator of dicts: encoder_input_tokens int32 [B, S],
    decoder_input_tokens and decoder_target_tokens int32 [B, T],
    decoder_loss_weights float32 [B, T]; (S, T) is one of the buckets. B is
    batch_size / num_shards. With `pack`, besides: encoder_segment_ids and
    encoder_positions int32 [B, S], decoder_segment_ids and decoder_positions
    int32 [B, T]; segments count from 1 in each row, 0 is padding.

  Raises:
    ValueError: on an unknown split or a bad number.
    FileNotFoundError: if `use_cached` and there is no cache.
  """
  lengths = checked_lengths(feature_lengths)
  rows = shard_rows(batch_size, num_shards, shard_id)
  if num_epochs is not None:
    check_positive(num_epochs=num_epochs)
  if shuffle_buffer is not None:
    check_positive(shuffle_buffer=shuffle_buffer)
  if skip < 0:
    raise ValueError(f'skip is {skip}; it must be 0 or more.')
  buckets = buckets_within(length_buckets, lengths)
  dataset = for_training(
    task,
    split,
    lengths,
    seed=seed,
    num_epochs=num_epochs,
    shuffle_buffer=shuffle_buffer,
    use_cached=use_cached,
  )
  if pack:
    dataset, to_batch = _packed(dataset, lengths, batch_size), _to_packed_batch
  else:
    dataset, to_batch = _grouped(dataset, buckets, batch_size), _to_batch
  dataset = dataset.skip(skip).prefetch(4)
  return (
    to_batch(
      {
        name: _fill_rows(array, batch_size)[rows]
        for name, array in arrays.items()
      }
    )
    for arrays in dataset.as_numpy_iterator()
  )


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
) -> Iterator[dict]:
  """Returns an iterator over a split once, in the Task's order.

  A Mixture's Tasks come one after the other, each example once whatever the
  rates; give a Task to have it alone.

  Args:
    task: a seqio Task or Mixture, its name, or a definition.
    batch_size: rows of every batch, all processes together; the last is filled
      up with rows of zeros.
    feature_lengths: as for `train_batches`.
    split: the split to read.
    on_too_long: 'truncate' cuts longer examples with one warning that counts
      them; 'error' refuses them.
    max_examples: stop after so many; None for all.
    num_shards: as for `train_batches`. All processes get the same number of
      batches; in the last one the later processes may have no real row.
    shard_id: as for `train_batches`.
    use_cached: as for `train_batches`.

  Returns:
    An iterator of the dicts of `train_batches`, all of one shape, and besides:
    num_valid (the number of real rows, which come first) and, for these rows
    only, `inputs_text`, `targets_text` (lists of str) and `references` (a list
    of lists of str).

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
    split,
    action='refused' if on_too_long == 'error' else 'cut',
  )
  return example_batches(
    examples, batch_size, lengths, num_shards=num_shards, shard_id=shard_id
  )


def example_batches(
  examples: Sequence[Mapping],
  batch_size: int,
  feature_lengths: Mapping[str, int],
  *,
  num_shards: int = 1,
  shard_id: int = 0,
) -> Iterator[dict]:
  """Returns evaluation batches of examples already in memory, in their order.

  Args:
    examples: a Task's examples as NumPy values; longer ones are cut.
    batch_size: rows of every batch; the last is filled up with rows of zeros.
    feature_lengths: longest inputs and targets in tokens.
    num_shards: as for `eval_batches`.
    shard_id: as for `eval_batches`.

  Returns:
    An iterator of the dicts of `eval_batches`.
  """
  rows = shard_rows(batch_size, num_shards, shard_id)
  return (
    _eval_batch(
      examples[start : start + batch_size][rows],
      batch_size // num_shards,
      feature_lengths,
    )
    for start in range(0, len(examples), batch_size)
  )


def to_model_features(inputs: np.ndarray, targets: np.ndarray) -> Batch:
  """Returns T5X's four arrays from padded ids [B, S] and [B, T]."""
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  return {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }


def _grouped(dataset, buckets, batch_size):
  """Batches examples of the same bucket, in the order in which they fill up."""
  return dataset.group_by_window(
    key_func=lambda example: _bucket_index(example, buckets),
    reduce_func=lambda key, window: _padded(key, window, buckets, batch_size),
    window_size=batch_size,
  )


def _bucket_index(example, buckets):
  """Returns the index of the first bucket both features fit."""
  sizes = tf.stack([tf.size(example[name]) for name in FEATURES])
  fits = tf.reduce_all(sizes <= tf.constant(buckets), axis=-1)
  return tf.argmax(tf.cast(fits, tf.int32), output_type=tf.int64)


def _padded(key, window, buckets, batch_size):
  shape = tf.gather(tf.constant(buckets, tf.int64), key)
  return window.padded_batch(
    batch_size,
    padded_shapes={name: shape[i : i + 1] for i, name in enumerate(FEATURES)},
  )


def _to_batch(arrays):
  return to_model_features(*(arrays[name] for name in FEATURES))


def _packed(dataset, lengths, batch_size):
  """Batches rows of several examples each, with seqio's packing."""
  converter = seqio.EncDecFeatureConverter(pack=True)
  return converter(dataset, lengths).batch(batch_size)


def _to_packed_batch(arrays):
  weights = 'decoder_loss_weights'
  batch = {name: array.astype(np.int32) for name, array in arrays.items()}
  return {**batch, weights: batch[weights].astype(np.float32)}


def _fill_rows(array, batch_size):
  missing = batch_size - array.shape[0]
  return np.pad(array, ((0, missing), (0, 0))) if missing else array


def _eval_batch(examples, batch_size, lengths):
  """Returns one evaluation batch of examples still ragged."""
  padded = {
    name: np.zeros((batch_size, lengths[name]), np.int32) for name in FEATURES
  }
  for row, example in enumerate(examples):
    for name in FEATURES:
      tokens = example[name][: lengths[name]]
      padded[name][row, : len(tokens)] = tokens
  return {
    **to_model_features(padded['inputs'], padded['targets']),
    'num_valid': len(examples),
    'inputs_text': [as_text(row['inputs_pretokenized']) for row in examples],
    'targets_text': [as_text(row['targets_pretokenized']) for row in examples],
    'references': [unpack_references(row) for row in examples],
  }

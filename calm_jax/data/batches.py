"""Batches of NumPy arrays with T5X's keys, from any seqio Task of text.

Training batches come shuffled over the whole split, grouped by length so that
little of a batch is padding, and in the same order for the same seed, so that a
run can go on where it stopped. Evaluation batches come in the Task's order and
carry the texts; every example counts once.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from calm_jax.data.preprocessors import as_text, unpack_references
from calm_jax.data.tasks import as_task
from calm_jax.data.tensorflow_setup import tf

FEATURES = ('inputs', 'targets')
DEFAULT_LENGTHS = {'inputs': 64, 'targets': 64}
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
) -> Iterator[Batch]:
  """Returns an iterator of training batches.

  Args:
    task: a seqio Task or Mixture, its name, or a `JsonlTask`.
    batch_size: rows of every batch.
    feature_lengths: longest `inputs` and `targets` in tokens, EOS included;
      64 each if None. Longer examples are cut (and lose EOS), with one warning
      that counts them.
    seed: of the order; the same seed gives the same batches.
    split: the split to read.
    length_buckets: (inputs, targets) lengths, growing; an example goes into
      the first bucket it fits. Buckets above `feature_lengths` are left out and
      `feature_lengths` is always the last one, so there are at most
      len(length_buckets) + 1 array shapes.
    skip: batches consumed by an earlier run with the same arguments.
    num_epochs: passes over the split; None repeats forever. The last batches of
      a finite run are filled up with rows of zeros.

  Returns:
    An iterator of dicts: encoder_input_tokens int32 [B, S],
    decoder_input_tokens and decoder_target_tokens int32 [B, T],
    decoder_loss_weights float32 [B, T]; (S, T) is one of the buckets.

  Raises:
    ValueError: on an unknown split or a bad number.
  """
  lengths = _lengths(feature_lengths)
  _check_positive(batch_size=batch_size)
  if num_epochs is not None:
    _check_positive(num_epochs=num_epochs)
  if skip < 0:
    raise ValueError(f'skip is {skip}; it must be 0 or more.')
  buckets = _buckets(length_buckets, lengths)
  dataset = _token_dataset(task, split).cache()
  size = _count(dataset, lengths, split, action='cut')
  dataset = dataset.map(lambda example: _trim(example, lengths))
  dataset = dataset.shuffle(size, seed=seed).repeat(num_epochs)
  dataset = dataset.group_by_window(
    key_func=lambda example: _bucket_index(example, buckets),
    reduce_func=lambda key, window: _padded(key, window, buckets, batch_size),
    window_size=batch_size,
  )
  dataset = dataset.skip(skip).prefetch(4)
  return (
    _to_batch(arrays, batch_size) for arrays in dataset.as_numpy_iterator()
  )


def eval_batches(
  task,
  batch_size: int,
  *,
  feature_lengths: Mapping[str, int] | None = None,
  split: str = 'validation',
  on_too_long: str = 'truncate',
  max_examples: int | None = None,
) -> Iterator[dict]:
  """Returns an iterator over a split once, in the Task's order.

  Args:
    task: a seqio Task or Mixture, its name, or a `JsonlTask`.
    batch_size: rows of every batch; the last is filled up with rows of zeros.
    feature_lengths: as for `train_batches`.
    split: the split to read.
    on_too_long: 'truncate' cuts longer examples with one warning that counts
      them; 'error' refuses them.
    max_examples: stop after so many; None for all.

  Returns:
    An iterator of the dicts of `train_batches`, all of one shape, and besides:
    num_valid (the number of real rows, which come first) and, for these rows
    only, `inputs_text`, `targets_text` (lists of str) and `references` (a list
    of lists of str).

  Raises:
    ValueError: on an unknown split, a bad number, or an example longer than
      `feature_lengths` with on_too_long='error'.
  """
  lengths = _lengths(feature_lengths)
  _check_positive(batch_size=batch_size)
  if on_too_long not in ('truncate', 'error'):
    raise ValueError(
      f"on_too_long is {on_too_long!r}; use 'truncate' or 'error'."
    )
  dataset = _dataset(task, split)
  if max_examples is not None:
    _check_positive(max_examples=max_examples)
    dataset = dataset.take(max_examples)
  examples = list(dataset.as_numpy_iterator())
  _report_too_long(
    sum(
      any(len(example[name]) > lengths[name] for name in FEATURES)
      for example in examples
    ),
    len(examples),
    lengths,
    split,
    action='refused' if on_too_long == 'error' else 'cut',
  )
  return example_batches(examples, batch_size, lengths)


def example_batches(
  examples: Sequence[Mapping],
  batch_size: int,
  feature_lengths: Mapping[str, int],
) -> Iterator[dict]:
  """Returns evaluation batches of examples already in memory, in their order.

  Args:
    examples: a Task's examples as NumPy values; longer ones are cut.
    batch_size: rows of every batch; the last is filled up with rows of zeros.
    feature_lengths: longest inputs and targets in tokens.

  Returns:
    An iterator of the dicts of `eval_batches`.
  """
  return (
    _eval_batch(
      examples[start : start + batch_size], batch_size, feature_lengths
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


def _dataset(task, split):
  """Returns the Task's tokenised split, whole and in order."""
  task = as_task(task)
  if split not in task.splits:
    raise ValueError(
      f'{task.name} has no split {split!r}; it has {sorted(task.splits)}.'
    )
  return task.get_dataset(
    sequence_length=None,
    split=split,
    shuffle=False,
    num_epochs=1,
    # seqio's cache complains when it is not read to the end.
    try_in_mem_cache=False,
  )


def _token_dataset(task, split):
  def keep(example):
    return {name: tf.cast(example[name], tf.int32) for name in FEATURES}

  return _dataset(task, split).map(keep, num_parallel_calls=tf.data.AUTOTUNE)


def _trim(example, lengths):
  return {name: example[name][: lengths[name]] for name in FEATURES}


def _count(dataset, lengths, split, *, action):
  """Passes once over a dataset, reports long examples, returns its size."""

  def add(totals, example):
    too_long = tf.reduce_any(
      [tf.size(example[name]) > lengths[name] for name in FEATURES]
    )
    return totals + tf.stack([1, tf.cast(too_long, tf.int64)])

  size, too_long = dataset.reduce(tf.zeros(2, tf.int64), add).numpy()
  if size == 0:
    raise ValueError(f'Split {split!r} has no examples.')
  _report_too_long(too_long, size, lengths, split, action=action)
  return int(size)


def _report_too_long(too_long, size, lengths, split, *, action):
  if not too_long:
    return
  message = (
    f'{too_long} of {size} examples of split {split!r} are longer than '
    f'{dict(lengths)} tokens and are {action}; raise feature_lengths to keep '
    'them whole.'
  )
  if action == 'refused':
    raise ValueError(message)
  logging.warning('%s', message)


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


def _to_batch(arrays, batch_size):
  return to_model_features(
    *(_fill_rows(arrays[name], batch_size) for name in FEATURES)
  )


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


def _lengths(feature_lengths):
  lengths = {**DEFAULT_LENGTHS, **(feature_lengths or {})}
  unknown = sorted(set(lengths) - set(FEATURES))
  if unknown:
    raise ValueError(f'feature_lengths names {unknown}; use {FEATURES}.')
  _check_positive(**lengths)
  return lengths


def _buckets(length_buckets, lengths):
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


def _check_positive(**numbers):
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f'{name} is {number}; it must be 1 or more.')

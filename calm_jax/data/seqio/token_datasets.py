"""Tokenised examples of a Task or Mixture: in order, or shuffled for training.

What batches are made of. A split that is not too large is kept in memory as
ids and shuffled as a whole; a larger one is streamed, its files in an order
drawn from the seed and its examples through a buffer. Either way the same seed
gives the same examples.
"""

import functools
import sys
from collections.abc import Iterator

import numpy as np

from calm_jax.data.batches import report_too_long
from calm_jax.data.plan import DataPlan
from calm_jax.data.seqio.caching import check_cached
from calm_jax.data.seqio.preprocessors import as_text, pack_reference_tensor
from calm_jax.data.seqio.tasks import (
  as_task,
  check_split,
  definition_of,
  inputs_cut_of,
  prefix_of,
  subtasks_of,
)
from calm_jax.data.seqio.tensorflow_setup import seqio, tf
from calm_jax.data.splits import normalised_input_hash
from calm_jax.data.token_files import FEATURES
from calm_jax.tokenizer import cut_input

# Splits of at most so many examples are held in memory for training.
IN_MEMORY_EXAMPLES = 250_000
# The buffer of larger ones.
STREAM_BUFFER = 50_000
# Examples of a streamed split that are looked at for the warning about length.
_LENGTH_SAMPLE = 1000


def in_order(task, split: str, *, use_cached: bool = False):
  """Returns a dataset of every example once, in the Task's order, with texts.

  A Mixture's Tasks follow each other, sorted by name; those that lack the split
  are left out.

  Raises:
    ValueError: if there is no such split.
    FileNotFoundError: if `use_cached` and there is no cache.
  """
  check_split(task, split)
  tasks = [part for part in subtasks_of(task) if split in part.splits]
  datasets = [
    _task_dataset(part, split, use_cached=use_cached) for part in tasks
  ]
  if len(datasets) == 1:
    return datasets[0]
  datasets = [dataset.map(_with_same_features) for dataset in datasets]
  whole = datasets[0]
  for dataset in datasets[1:]:
    whole = whole.concatenate(dataset)
  return whole


def for_training(
  task, split: str, plan: DataPlan, *, seed: int, num_epochs: int | None = None
):
  """Returns a dataset of shuffled, repeated, cut `inputs` and `targets`.

  Args:
    task: a Task or Mixture; a Mixture is drawn from at its rates.
    split: the split to read.
    plan: lengths, buffer for shuffling, and whether to read a cache.
    seed: of the order and of the mixing.
    num_epochs: passes over the split; None repeats forever, which a Mixture
      needs.

  Raises:
    ValueError: if there is no such split, it is empty, or a Mixture is to have
      epochs.
  """
  check_split(task, split)
  mixture = as_task(task)
  if not isinstance(mixture, seqio.Mixture):
    return _shuffled(mixture, split, plan, seed).repeat(num_epochs)
  if num_epochs is not None:
    raise ValueError(
      f'num_epochs is {num_epochs}, but the mixture {mixture.name} draws from '
      'its tasks at their rates and has no epochs; leave it None.'
    )
  tasks = [part for part in mixture.tasks if split in part.splits]
  return tf.data.Dataset.sample_from_datasets(
    [_shuffled(part, split, plan, seed).repeat() for part in tasks],
    weights=[mixture.get_rate(part) for part in tasks],
    seed=seed,
  )


def tokenised_examples(
  task, split: str, *, max_examples: int | None = None
) -> Iterator[dict]:
  """Yields the examples of a split as ids, whole, in the Task's order.

  Args:
    task: a Task made here or elsewhere; not a Mixture, whose rates would be
      lost.
    split: the split to read.
    max_examples: stop after so many; None for all.

  Yields:
    Dicts of `inputs` and `targets`, int32, EOS included, and `input_hash`, the
    `normalised_input_hash` of the input without the Task's prefix.

  Raises:
    ValueError: if it is a Mixture or there is no such split.
  """
  task = as_task(task)
  if isinstance(task, seqio.Mixture):
    raise ValueError(
      f'{task.name} is a mixture; take its tasks one by one: '
      f'{[part.name for part in task.tasks]}.'
    )
  prefix = prefix_of(task)
  dataset = in_order(task, split)
  if max_examples is not None:
    dataset = dataset.take(max_examples)
  for example in dataset.as_numpy_iterator():
    text = as_text(example['inputs_pretokenized']).removeprefix(prefix)
    yield {
      **{name: np.asarray(example[name], np.int32) for name in FEATURES},
      'input_hash': normalised_input_hash(text),
    }


def _task_dataset(task, split, *, use_cached, shuffle=False, seed=None):
  if use_cached:
    check_cached(task, split)
  return task.get_dataset(
    sequence_length=None,
    split=split,
    use_cached=use_cached,
    shuffle=shuffle,
    # Its buffer would hold the texts as well; ours comes after they are gone.
    shuffle_buffer_size=1,
    seed=seed,
    num_epochs=1,
    # seqio's cache complains when it is not read to the end.
    try_in_mem_cache=False,
  )


def _with_same_features(example):
  """Keeps what batches need, so that datasets can be joined."""
  texts = (f'{name}_pretokenized' for name in FEATURES)
  kept = {name: example[name] for name in (*FEATURES, *texts)}
  if 'references' in example:
    kept['references'] = example['references']
  else:
    # What `unpack_references` reads as the target alone.
    targets = example['targets_pretokenized'][tf.newaxis]
    kept['references'] = pack_reference_tensor(targets)
  return kept


def _shuffled(task, split, plan, seed):
  """Returns one pass over a Task's split; every pass has another order."""
  lengths, buffer = plan.lengths, plan.shuffle_buffer

  def keep(example):
    return {name: tf.cast(example[name], tf.int32) for name in FEATURES}

  form = inputs_cut_of(task, plan.inputs_cut)

  def cut(example):
    inputs = cut_input(
      example['inputs'],
      lengths['inputs'],
      form=form,
      join=functools.partial(tf.concat, axis=0),
    )
    return {
      'inputs': inputs,
      'targets': example['targets'][: lengths['targets']],
    }

  size = _size(task, split, use_cached=plan.use_cached)
  in_memory = buffer is None and (size or 0) <= IN_MEMORY_EXAMPLES
  dataset = _task_dataset(
    task,
    split,
    use_cached=plan.use_cached,
    shuffle=not in_memory,
    seed=None if in_memory else seed,
  ).map(keep, num_parallel_calls=tf.data.AUTOTUNE)
  if in_memory:
    dataset = dataset.cache()
    buffer = _count(dataset, lengths, f'split {split!r}')
    # Those made here tell by themselves, and why.
    if definition_of(task) is None and size and buffer < size:
      print(
        f'Task {task.name!r}: {split}: of {size} rows of its source '
        f'{size - buffer} became no example',
        file=sys.stderr,
      )
  else:
    buffer = buffer or STREAM_BUFFER
    _count(
      dataset.take(_LENGTH_SAMPLE), lengths, f'the start of split {split!r}'
    )
  return dataset.map(cut).shuffle(buffer, seed=seed)


def _size(task, split, *, use_cached) -> int | None:
  if use_cached:
    check_cached(task, split)
    return int(task.get_cached_stats(split)['examples'])
  return task.num_input_examples(split)


def _count(dataset, lengths, place) -> int:
  """Passes once over a dataset, reports long examples, returns its size."""

  def add(totals, example):
    too_long = tf.reduce_any(
      [tf.size(example[name]) > lengths[name] for name in FEATURES]
    )
    return totals + tf.stack([1, tf.cast(too_long, tf.int64)])

  size, too_long = dataset.reduce(tf.zeros(2, tf.int64), add).numpy()
  if size == 0:
    raise ValueError(f'There are no examples in {place}.')
  report_too_long(too_long, size, lengths, place)
  return int(size)

"""Which inputs a run has seen, so that calibration can refuse them.

An input counts as the same after `splits.normalise_input`, without the task
prefix. The training job keeps the hashes (`calm_jax.records.TrainingRows`);
whoever certifies or reports looks its rows up in them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from calm_jax.data.seqio.preprocessors import as_text
from calm_jax.data.seqio.tasks import (
  as_task,
  check_split,
  definition_of,
  subtasks_of,
)
from calm_jax.data.seqio.tensorflow_setup import tf
from calm_jax.data.splits import normalised_input_hash

_QUOTED = 3
_QUOTE_LENGTH = 80


def input_hashes(
  task, split: str, *, max_examples: int | None = None
) -> np.ndarray:
  """Returns the hashes of the normalised inputs of a split.

  Texts are read and not tokenised. Inputs of Tasks made elsewhere are hashed as
  their models read them, for we do not know a prefix of theirs.

  Args:
    task: a Task or Mixture, its name, or a definition.
    split: the split to read.
    max_examples: only the first so many examples of the Task's order, as
      `eval_batches` takes them (from no cache); None for all.

  Returns:
    uint64, sorted, without repetition.

  Raises:
    ValueError: if there is no such split or max_examples is below 1.
  """
  check_split(task, split)
  if max_examples is not None and max_examples < 1:
    raise ValueError(f'max_examples is {max_examples}; it must be 1 or more.')
  datasets = [
    _inputs(part, split) for part in subtasks_of(task) if split in part.splits
  ]
  inputs = datasets[0]
  for dataset in datasets[1:]:
    inputs = inputs.concatenate(dataset)
  if max_examples is not None:
    inputs = inputs.take(max_examples)
  hashes = np.fromiter(
    (
      normalised_input_hash(as_text(text))
      for texts in inputs.batch(1024).as_numpy_iterator()
      for text in texts
    ),
    np.uint64,
  )
  return np.unique(hashes)


def refuse_training_rows(
  examples: Iterable[Any], rows: Any, *, prefix: str = ''
) -> None:
  """Checks that inputs were neither trained nor selected on.

  Args:
    examples: texts, things with an `inputs` text (`TextExample`), or batches of
      `eval_batches` (dicts with `inputs_text`).
    rows: has `trained` and `selected`, uint64 arrays of input hashes, as
      `calm_jax.records.read_training_rows` returns.
    prefix: the task prefix, taken off where a text begins with it: texts of
      batches carry it, hashes are of inputs without.

  Raises:
    ValueError: if there are such inputs; it counts and quotes them.
  """
  texts = [text.removeprefix(prefix) for text in _texts(examples)]
  hashes = np.array([normalised_input_hash(text) for text in texts], np.uint64)
  trained = np.isin(hashes, np.asarray(rows.trained, np.uint64))
  selected = np.isin(hashes, np.asarray(rows.selected, np.uint64)) & ~trained
  if not (trained.any() or selected.any()):
    return
  found = [
    (texts[index], 'trained on' if trained[index] else 'selected on')
    for index in np.flatnonzero(trained | selected)
  ]
  quotes = '; '.join(
    f'{_shortened(text)!r} ({how})' for text, how in found[:_QUOTED]
  )
  more = f'; and {len(found) - _QUOTED} more' if len(found) > _QUOTED else ''
  raise ValueError(
    f'{len(found)} of {len(texts)} inputs were used by the training run '
    f'({trained.sum()} trained on, {selected.sum()} selected on), and a '
    f'certificate needs rows that chose nothing: {quotes}{more}. Use a split '
    'that shares no input with train and validation.'
  )


def _inputs(task, split):
  """Returns a dataset of input texts, without prefix where we know it."""
  task = as_task(task)
  if definition_of(task) is not None:
    dataset, key = task.source.get_dataset(split, shuffle=False), 'inputs'
  else:
    dataset = task.get_dataset(
      None, split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    key = 'inputs_pretokenized'
    if key not in dataset.element_spec:
      raise ValueError(
        f'{task.name} gives no {key!r}, so its inputs cannot be recognised '
        'again; tokenise with seqio.preprocessors.tokenize.'
      )
  return dataset.map(
    lambda example: example[key], num_parallel_calls=tf.data.AUTOTUNE
  )


def _texts(examples: Iterable[Any]) -> Iterator[str]:
  for example in examples:
    if isinstance(example, str):
      yield example
    elif isinstance(example, Mapping):
      yield from example['inputs_text']
    else:
      yield example.inputs


def _shortened(text: str) -> str:
  return text if len(text) <= _QUOTE_LENGTH else text[:_QUOTE_LENGTH] + '...'

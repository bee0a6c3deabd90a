"""Text rows of TensorFlow Datasets, in splits that share no input.

A seqio source around `seqio.TfdsDataSource`. Held-out splits are small: they
are read once, when first needed, divided by the hash of the input, and kept.
Train is never held in memory: its rows pass through a filter that drops what
occurs in a held-out split. Nothing is ever downloaded.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping

import numpy as np

from calm_jax.data.jsonl_files import TextExample
from calm_jax.data.seqio import preprocessors
from calm_jax.data.seqio.tensorflow_setup import seqio, tf
from calm_jax.data.splits import (
  SPLITS,
  Dropped,
  drop_inputs_of,
  normalised_input_hash,
  one_per_input,
)

# Rows whose inputs are hashed together: a call into Python costs much more than
# a hash.
_HASH_ROWS = 256


def prepared_path(dataset: str, directory: str) -> str:
  """Returns the folder of a prepared data set.

  Args:
    dataset: name, config if any, and version, as in 'squad/v1.1:3.0.0'.
    directory: the folder that TensorFlow Datasets keeps its data sets in.

  Raises:
    ValueError: if the name lacks its version.
    FileNotFoundError: if it has not been prepared there.
  """
  name, _, version = dataset.partition(':')
  if not version:
    raise ValueError(
      f'dataset {dataset!r} names no version; write it like squad/v1.1:3.0.0, '
      'so that a run can be repeated.'
    )
  path = os.path.join(directory, name, version)
  if not tf.io.gfile.exists(os.path.join(path, 'dataset_info.json')):
    raise FileNotFoundError(
      f'The TensorFlow data set {dataset} is not in {directory} (there is no '
      f'{path}/dataset_info.json). Give the directory that has it, or prepare '
      'it on a machine with network access: python -c "import '
      f"tensorflow_datasets as tfds; tfds.builder('{dataset}', "
      f"data_dir='{directory}').download_and_prepare()\""
    )
  return path


class _PassOverTrain:
  """Counts the rows of one pass at a time, and tells of them at its end.

  A stream's rows are known once it has ended; one that is left before then, as
  by a last step of training, has nothing to tell.
  """

  def __init__(self, tell: Callable[[Dropped], None]):
    self._tell = tell
    # tf.data counts in several threads.
    self._lock = threading.Lock()
    self._counts = np.zeros(3, int)

  def add(self, has_text: np.ndarray, is_free: np.ndarray) -> None:
    """Counts some rows: which have both texts, which are no one else's."""
    counts = len(is_free), (has_text & ~is_free).sum(), (~has_text).sum()
    with self._lock:
      self._counts += counts

  def around(self, dataset):
    """Returns the dataset, whose passes begin and end with us."""
    return (
      self._silent(dataset, self._begin)
      .concatenate(dataset)
      .concatenate(self._silent(dataset, self._end))
    )

  def _begin(self) -> None:
    self._counts[:] = 0

  def _end(self) -> None:
    rows, shared, empty = self._counts.tolist()
    self._tell(Dropped('train', rows, 0, shared, empty))

  def _silent(self, dataset, do: Callable[[], None]):
    """Returns a dataset without rows, which does something when it is read."""

    def rows():
      do()
      yield from ()

    return tf.data.Dataset.from_generator(
      rows, output_signature=dataset.element_spec
    )


class TfdsTextSource(seqio.DataSource):
  """The rows `inputs`, `targets` and `references` of a prepared data set.

  Where several of our splits name the same TFDS split they divide it by the
  hash of the input, in equal parts on average. Precedence where an input occurs
  in several TFDS splits: validation, calibration, test, and train last, which
  loses it. Held-out splits have one row per input, with all references that
  rows of this input give, in an order that follows from the hashes.

  Rows that no split has are counted and told, once: of held-out splits when
  they are read, of train when somebody has read all of it.
  """

  def __init__(
    self,
    dataset: str,
    directory: str,
    splits: Mapping[str, str],
    form: Callable,
  ):
    """Finds the data set; reads no rows yet.

    Args:
      dataset: name, config and version, as in 'squad/v1.1:3.0.0'.
      directory: the folder that TensorFlow Datasets keeps its data sets in.
      splits: our split ('train', 'validation', 'calibration', 'test') to a
        TFDS split or slice, such as 'validation' or 'train[90%:]'.
      form: one example as tensors -> `inputs`, `targets`, `references`.

    Raises:
      FileNotFoundError: if the data set has not been prepared.
      ValueError: if it lacks one of the splits.
    """
    super().__init__(splits=[name for name in SPLITS if name in splits])
    prepared_path(dataset, directory)
    self._dataset = dataset
    self._tfds_splits = dict(splits)
    self._form = form
    self._told: set[str] = set()
    self._inner = seqio.TfdsDataSource(
      dataset,
      tfds_data_dir=directory,
      splits={name: name for name in splits.values()},
      # Otherwise reading could start a download.
      read_only=True,
    )
    known = set(self._inner.tfds_dataset.info.splits)
    for name, tfds_split in splits.items():
      if tfds_split.partition('[')[0] not in known:
        raise ValueError(
          f'split {name!r} reads the split {tfds_split!r} of {dataset}, which '
          f'has {sorted(known)}.'
        )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """False: seqio shards the examples where files do not suffice."""
    return False

  def list_shards(self, split: str) -> list[str]:
    """Returns the files of train; one name for a split held in memory."""
    if split == 'train':
      return list(self._inner.list_shards(self._tfds_splits['train']))
    return [split]

  def num_input_examples(self, split: str) -> int:
    """Returns the number of rows; for train an upper bound, before the filter.

    For a held-out split it reads the rows.
    """
    if split == 'train':
      return self._inner.num_input_examples(self._tfds_splits['train'])
    return len(self._held_out[split])

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info=None,
    *,
    sequence_length=None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ):
    """Returns a tf.data.Dataset of strings; see `seqio.DataSource`.

    Raises:
      ValueError: if a held-out split has no rows.
    """
    del sequence_length, use_cached, num_epochs
    if split == 'train':
      return self._train(shuffle, seed, shard_info)
    examples = self._held_out[split]
    if not examples:
      raise ValueError(
        f'Split {split!r} of {self._dataset} has no rows: all of '
        f'{self._tfds_splits[split]!r} went to other splits.'
      )
    dataset = preprocessors.shuffled_examples_dataset(
      examples, shuffle=shuffle, seed=seed
    )
    if shard_info is not None:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset

  @functools.cached_property
  def _held_out(self) -> dict[str, list[TextExample]]:
    """The rows of every split but train."""
    sharing: dict[str, list[str]] = {}
    for name in SPLITS[1:]:
      if name in self._tfds_splits:
        sharing.setdefault(self._tfds_splits[name], []).append(name)
    rows: dict[str, list[TextExample]] = {}
    for tfds_split, names in sharing.items():
      found, empty = self._read(tfds_split)
      distinct = one_per_input(found)
      examples = drop_inputs_of(distinct, *rows.values())
      self._tell(
        Dropped(
          ' and '.join(names),
          len(found) + empty,
          len(found) - len(distinct),
          len(distinct) - len(examples),
          empty,
        )
      )
      for name in names:
        rows[name] = []
      for example in examples:
        place = normalised_input_hash(example.inputs, 'held-out split')
        rows[names[place * len(names) >> 64]].append(example)
    for examples in rows.values():
      # The first rows of a split must be like the others.
      examples.sort(key=lambda row: normalised_input_hash(row.inputs, 'order'))
    return rows

  @functools.cached_property
  def _held_out_hashes(self) -> frozenset[int]:
    return frozenset(
      normalised_input_hash(example.inputs)
      for examples in self._held_out.values()
      for example in examples
    )

  def _tell(self, dropped: Dropped) -> None:
    """Says what became of the rows of a split, if any are not in it."""
    lost = dropped.repeated or dropped.shared or dropped.empty
    if lost and dropped.split not in self._told:
      self._told.add(dropped.split)
      print(f'{self._dataset}: {dropped}', file=sys.stderr)

  def _read(self, tfds_split: str) -> tuple[list[TextExample], int]:
    """Returns the rows of a TFDS split, and how many lack a text."""
    rows = self._rows(self._inner.get_dataset(tfds_split, shuffle=False))
    found, empty = [], 0
    for row in rows.as_numpy_iterator():
      if not row['has_text']:
        empty += 1
        continue
      found.append(
        TextExample(
          preprocessors.as_text(row['inputs']),
          preprocessors.as_text(row['targets']),
          tuple(preprocessors.unpack_references(row)),
        )
      )
    return found, empty

  def _rows(self, dataset):
    """Returns text rows, with whether they have both input and target."""

    def to_row(example):
      row = self._form(example)
      references = preprocessors.pack_reference_tensor(row['references'])
      has_text = tf.reduce_all(
        [tf.strings.strip(row[name]) != '' for name in ('inputs', 'targets')]
      )
      return {**row, 'references': references, 'has_text': has_text}

    return dataset.map(to_row, num_parallel_calls=tf.data.AUTOTUNE)

  def _train(self, shuffle, seed, shard_info):
    """Returns train without the inputs of held-out splits, streamed."""
    held_out = self._held_out_hashes
    # Of a share of the rows there is no telling what the split loses.
    one_pass = None if shard_info is not None else _PassOverTrain(self._tell)

    def is_kept(inputs, has_text):
      is_free = np.array(
        [
          normalised_input_hash(text.decode('utf-8', 'replace')) not in held_out
          for text in inputs
        ],
        bool,
      )
      if one_pass is not None:
        one_pass.add(has_text, is_free)
      return has_text & is_free

    def keep_free(rows):
      has_text = rows.pop('has_text')
      free = tf.numpy_function(
        is_kept, [rows['inputs'], has_text], tf.bool, stateful=False
      )
      free.set_shape([None])
      return {
        name: tf.boolean_mask(value, free) for name, value in rows.items()
      }

    dataset = self._inner.get_dataset(
      self._tfds_splits['train'],
      shuffle=shuffle,
      seed=seed,
      shard_info=shard_info,
    )
    dataset = self._rows(dataset).batch(_HASH_ROWS)
    dataset = dataset.map(
      keep_free, num_parallel_calls=tf.data.AUTOTUNE
    ).unbatch()
    return dataset if one_pass is None else one_pass.around(dataset)

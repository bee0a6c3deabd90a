"""Text rows of TensorFlow Datasets, in splits that share no input.

A seqio source around `seqio.TfdsDataSource`. Held-out splits are small: they
are read once, when first needed, divided by the hash of the input, and kept.
Train is never held in memory: its rows pass through a filter that drops what
occurs in a held-out split. Nothing is ever downloaded.
"""

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np

from calm_jax.data.jsonl_files import TextExample
from calm_jax.data.seqio import preprocessors
from calm_jax.data.seqio.tensorflow_setup import seqio, tf
from calm_jax.data.splits import (
  SPLITS,
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


class TfdsTextSource(seqio.DataSource):
  """The rows `inputs`, `targets` and `references` of a prepared data set.

  Where several of our splits name the same TFDS split they divide it by the
  hash of the input, in equal parts on average. Precedence where an input occurs
  in several TFDS splits: validation, calibration, test, and train last, which
  loses it. Held-out splits have one row per input, with all references that
  rows of this input give, in an order that follows from the hashes.
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
      examples = drop_inputs_of(
        one_per_input(self._read(tfds_split)), *rows.values()
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

  def _read(self, tfds_split: str) -> list[TextExample]:
    rows = self._rows(self._inner.get_dataset(tfds_split, shuffle=False))
    return [
      TextExample(
        preprocessors.as_text(row['inputs']),
        preprocessors.as_text(row['targets']),
        tuple(preprocessors.unpack_references(row)),
      )
      for row in rows.as_numpy_iterator()
    ]

  def _rows(self, dataset):
    """Returns text rows, those without input or target left out."""

    def to_row(example):
      row = self._form(example)
      references = preprocessors.pack_reference_tensor(row['references'])
      return {**row, 'references': references}

    def has_text(row):
      return tf.reduce_all(
        [tf.strings.strip(row[name]) != '' for name in ('inputs', 'targets')]
      )

    return dataset.map(to_row, num_parallel_calls=tf.data.AUTOTUNE).filter(
      has_text
    )

  def _train(self, shuffle, seed, shard_info):
    """Returns train without the inputs of held-out splits, streamed."""
    held_out = self._held_out_hashes

    def is_free(inputs):
      return np.array(
        [
          normalised_input_hash(text.decode('utf-8', 'replace')) not in held_out
          for text in inputs
        ],
        bool,
      )

    def keep_free(rows):
      free = tf.numpy_function(
        is_free, [rows['inputs']], tf.bool, stateful=False
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
    return dataset.map(keep_free, num_parallel_calls=tf.data.AUTOTUNE).unbatch()

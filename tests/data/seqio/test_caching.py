"""seqio's offline cache: read where it is, explained where it is not."""

import json

import pytest
from tools.planned import train_batches

seqio = pytest.importorskip('seqio')

from calm_jax import data
from calm_jax.data.seqio.tensorflow_setup import tf

LENGTHS = {'inputs': 40, 'targets': 20}


@pytest.fixture
def definition(jsonl_files, request):
  paths, vocabulary = jsonl_files
  name = request.node.name.removeprefix('test_')
  return data.JsonlTask(f'cached_{name}', paths, vocabulary, prefix='do: ')


@pytest.fixture(autouse=True)
def _own_cache_directories():
  before = list(seqio.get_global_cache_dirs())
  yield
  seqio.set_global_cache_dirs(before)


def write_cache(directory, task, splits):
  """Writes what seqio_cache_tasks does, in the files' documented form."""
  folder = directory / task.name
  folder.mkdir()
  for split in splits:
    dataset = task.preprocess_precache(
      task.source.get_dataset(split, shuffle=False)
    )
    features = {
      name: {'shape': list(spec.shape), 'dtype': spec.dtype.name}
      for name, spec in dataset.element_spec.items()
    }
    examples = list(dataset)
    path = str(folder / f'{split}.tfrecord-00000-of-00001')
    with tf.io.TFRecordWriter(path) as writer:
      for example in examples:
        writer.write(seqio.dict_to_tfexample(example).SerializeToString())
    (folder / f'info.{split}.json').write_text(
      json.dumps(
        {'num_shards': 1, 'features': features, 'seqio_version': '0.0.20'}
      )
    )
    (folder / f'stats.{split}.json').write_text(
      json.dumps({'examples': len(examples)})
    )
  (folder / 'COMPLETED').write_text('')


def as_lists(batches):
  return [
    {
      name: value.tolist() if hasattr(value, 'tolist') else value
      for name, value in batch.items()
    }
    for batch in batches
  ]


@pytest.mark.slow
def test_cached_batches_equal_fresh_ones(definition, tmp_path):
  task = definition.register()
  write_cache(tmp_path, task, ('train', 'test'))
  data.add_cache_directories([str(tmp_path)])
  for make, options in (
    (data.eval_batches, dict(split='test')),
    (train_batches, dict(num_epochs=1, seed=2)),
  ):
    fresh, cached = (
      as_lists(
        make(task, 8, feature_lengths=LENGTHS, use_cached=use_cached, **options)
      )
      for use_cached in (False, True)
    )
    assert fresh == cached and len(fresh) > 3
  with pytest.raises(FileNotFoundError, match="has no split 'validation'"):
    data.eval_batches(task, 8, use_cached=True)


def test_a_cache_is_what_is_read(definition, tmp_path):
  task = definition.register()
  write_cache(tmp_path, task, ('test',))
  # The file of another split under this one's name: reading must show it.
  folder = tmp_path / task.name
  other = task.preprocess_precache(
    task.source.get_dataset('train', shuffle=False)
  ).take(3)
  path = str(folder / 'test.tfrecord-00000-of-00001')
  with tf.io.TFRecordWriter(path) as writer:
    for example in other:
      writer.write(seqio.dict_to_tfexample(example).SerializeToString())
  data.add_cache_directories([str(tmp_path)])
  (batch,) = data.eval_batches(task, 8, split='test', use_cached=True)
  assert batch['num_valid'] == 3


def test_a_missing_cache_is_explained(definition, tmp_path):
  task = definition.register()
  for make in (train_batches, data.eval_batches):
    with pytest.raises(FileNotFoundError, match='seqio_cache_tasks') as raised:
      make(task, 8, use_cached=True)
    assert task.name in str(raised.value)
  data.add_cache_directories([str(tmp_path)])
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    train_batches(task, 8, use_cached=True)
  with pytest.raises(FileNotFoundError, match='no cache folder'):
    data.add_cache_directories([str(tmp_path / 'none')])


def test_tasks_have_the_place_for_a_cache_after_tokenisation(definition):
  task = definition.register()
  kinds = [
    isinstance(step, seqio.CacheDatasetPlaceholder)
    for step in task.preprocessors
  ]
  assert task.supports_caching and kinds == [False, False, True, False]


def test_a_task_without_the_place_says_so(definition):
  task = definition.register()
  bare = task.replace(
    name=f'{task.name}_bare',
    preprocessors=[
      step
      for step in task.preprocessors
      if not isinstance(step, seqio.CacheDatasetPlaceholder)
    ],
  )
  with pytest.raises(ValueError, match='no seqio.CacheDatasetPlaceholder'):
    train_batches(bare, 8, use_cached=True)

"""JSONL Tasks: what seqio gets, idempotent registration, bad definitions."""

import dataclasses
import json

import numpy as np
import pytest

seqio = pytest.importorskip('seqio')

from calm_jax.data.seqio import preprocessors, task_metrics, tasks, vocabularies
from calm_jax.evaluation import corpus_metrics


@pytest.fixture
def definition(jsonl_files, request):
  paths, vocabulary = jsonl_files
  return tasks.JsonlTask(
    f'task_{request.node.name.split("[")[0]}',
    paths,
    vocabulary,
    prefix='do: ',
    extra_ids=3,
  )


def test_examples_hold_ids_with_eos_and_texts(definition):
  task = definition.register()
  vocabulary = task.output_features['inputs'].vocabulary
  assert vocabulary.vocab_size == 53
  assert set(task.splits) == {'train', 'validation', 'calibration', 'test'}
  rows = definition.read_splits()
  for split in task.splits:
    examples = list(
      task.get_dataset(None, split, shuffle=False).as_numpy_iterator()
    )
    assert len(examples) == len(rows[split]) == task.num_input_examples(split)
    for example, row in zip(examples, rows[split], strict=True):
      text = example['inputs_pretokenized'].decode()
      assert text == 'do: ' + row.inputs
      assert example['targets_pretokenized'].decode() == row.targets
      assert example['inputs'].tolist() == [*vocabulary.encode(text), 1]
      assert example['targets'].tolist() == [
        *vocabulary.encode(row.targets),
        1,
      ]
      assert tuple(preprocessors.unpack_references(example)) == row.references


def test_trimming_takes_eos_off_targets_alone(definition):
  task = definition.register()
  lengths = {'inputs': 5, 'targets': 4}
  dataset = task.get_dataset(lengths, 'train', shuffle=False)
  ends = []
  for example in dataset.as_numpy_iterator():
    assert len(example['inputs']) == 5 and example['inputs'][-1] == 1
    ends.append(example['targets'][-1])
  assert set(ends) > {1}, 'a target that was cut ends with EOS'


def test_shuffling_reaches_the_whole_file(definition):
  source = definition.register().source
  order = [
    [row['inputs'] for row in dataset.as_numpy_iterator()]
    for dataset in (
      source.get_dataset('train', shuffle=True, seed=1),
      source.get_dataset('train', shuffle=True, seed=1),
      source.get_dataset('train', shuffle=True, seed=2),
      source.get_dataset('train', shuffle=False),
    )
  ]
  assert order[0] == order[1] and order[0] != order[2]
  assert sorted(order[0]) == sorted(order[3]) and order[0] != order[3]


def test_registering_again(definition):
  task = definition.register()
  assert definition.register() is task
  assert dataclasses.replace(definition).register() is task
  assert tasks.as_task(definition) is task
  assert tasks.as_task(definition.name) is task
  assert tasks.as_task(task) is task
  with pytest.raises(ValueError, match='registered already'):
    dataclasses.replace(definition, prefix='other: ').register()
  with pytest.raises(ValueError, match="'nobody_knows'"):
    tasks.as_task('nobody_knows')


def test_a_task_of_bytes(jsonl_files):
  paths, _ = jsonl_files
  task = tasks.JsonlTask(
    name='tasks_bytes', paths=paths, vocabulary='bytes', extra_ids=5
  ).register()
  example = next(task.get_dataset(None, 'test').as_numpy_iterator())
  tokenizer = vocabularies.tokenizer_of(
    task.output_features['inputs'].vocabulary
  )
  assert tokenizer.vocab_size == 264
  text = example['inputs_pretokenized'].decode()
  assert example['inputs'].tolist() == [*tokenizer.encode(text), 1]
  with pytest.raises(ValueError, match='PassThroughVocabulary; use'):
    vocabularies.tokenizer_of(seqio.PassThroughVocabulary(7))


def test_factory_function(jsonl_files):
  paths, vocabulary = jsonl_files
  task = tasks.register_jsonl_task('factory', paths, vocabulary=vocabulary)
  assert task.name == 'factory' and len(task.predict_metric_fns) == 2


def test_seqio_evaluator_scores_against_all_references(definition, tmp_path):
  rows = definition.read_splits()['test']
  definition = dataclasses.replace(definition, metrics=('exact_match', 'bleu'))
  task = definition.register()
  evaluator = seqio.Evaluator(
    task.name,
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split='test',
    logger_cls=[],
  )
  vocabulary = task.output_features['targets'].vocabulary

  def predict(dataset):
    # The last reference for even rows, nonsense for odd ones.
    outputs = []
    for index, _ in dataset.as_numpy_iterator():
      refs = rows[index].references
      text = refs[index % 3 % len(refs)] if index % 2 == 0 else 'none such'
      tokens = vocabulary.encode(text)[:20]
      outputs.append((index, tokens + [1] + [0] * (20 - len(tokens))))
    return outputs

  future, _ = evaluator.evaluate(
    compute_metrics=True, step=0, predict_fn=predict
  )
  (metrics,) = future.result().values()
  expected = 100 * np.mean([index % 2 == 0 for index in range(len(rows))])
  assert metrics['exact_match'] == pytest.approx(expected)
  assert 0 < metrics['bleu'] < 100


def test_metric_names_are_those_of_the_scoring_module():
  assert set(task_metrics.METRICS) == set(corpus_metrics.CORPUS_METRICS)


def test_bad_definitions(definition, tmp_path):
  replace = dataclasses.replace
  with pytest.raises(ValueError, match='no train file'):
    replace(definition, paths={'test': 'x'})
  with pytest.raises(ValueError, match='unknown splits'):
    replace(definition, paths={**definition.paths, 'dev': 'x'})
  with pytest.raises(ValueError, match='meteor'):
    replace(definition, metrics=('meteor',))
  with pytest.raises(ValueError, match='calibration_fraction is 2'):
    replace(definition, calibration_fraction=2)
  with pytest.raises(FileNotFoundError, match='none.jsonl'):
    replace(
      definition, paths={'train': 'none.jsonl'}, directory=str(tmp_path)
    ).register()
  with pytest.raises(FileNotFoundError, match='none.model'):
    replace(definition, vocabulary=str(tmp_path / 'none.model')).register()
  bad = tmp_path / 'bad.jsonl'
  bad.write_text(json.dumps({'inputs': 'a', 'targets': 'b'}) + '\n{"inp\n')
  with pytest.raises(ValueError, match='bad.jsonl line 2'):
    replace(definition, paths={'train': str(bad)}).register()
  # None of the failures has taken the name.
  definition.register()

"""The tokenize job: the ids of a Task, for training without TensorFlow."""

import dataclasses
import json

import numpy as np
import pytest
from cases import training_cases

gin = pytest.importorskip('gin')
pytest.importorskip('seqio')

from calm_jax import data, records, runs, training
from calm_jax.cli import gin_runner
from calm_jax.tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

TASK = """
from __gin__ import dynamic_registration
from calm_jax.data.seqio import tasks

DATA_DIR = %gin.REQUIRED
TASK = @tasks.JsonlTask()
tasks.JsonlTask.name = 'tokenised'
tasks.JsonlTask.directory = %DATA_DIR
tasks.JsonlTask.paths = {'train': 'train.jsonl', 'test': 'test.jsonl'}
tasks.JsonlTask.prefix = 'do: '
tasks.JsonlTask.vocabulary = %VOCABULARY
"""


@pytest.fixture(scope='module')
def bindings(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenise')
  for split, first in (('train', 0), ('test', 100)):
    rows = [
      {'inputs': f'apple {n} pear', 'targets': f'plum {n}'}
      for n in range(first, first + 40)
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / f'{split}.jsonl').write_text(text, encoding='utf-8')
  vocabulary = str(folder / 'vocabulary.model')
  lines = [f'do: apple {n} pear plum' for n in range(140)]
  train_sentencepiece(lines, vocabulary, vocab_size=30)
  (folder / 'task.gin').write_text(TASK, encoding='utf-8')
  return {
    'DATA_DIR': str(folder),
    'VOCABULARY': vocabulary,
    'OUTPUT_DIR': str(folder / 'tokens'),
  }


def call(bindings, **more):
  gin_runner.parse(
    ['runs/tokenize.gin', f'{bindings["DATA_DIR"]}/task.gin'],
    [f'{name} = {value!r}' for name, value in {**bindings, **more}.items()],
  )
  try:
    return gin.get_configurable('calm_jax.cli.tokenize.run')()
  finally:
    gin.clear_config()


@pytest.fixture(scope='module')
def paths(bindings):
  return call(bindings)


def test_files_hold_what_the_task_gives(paths, bindings):
  assert set(paths) == {'train', 'calibration', 'test'}
  for split, path in paths.items():
    assert path == f'{bindings["OUTPUT_DIR"]}/{split}.npz'
    (ours,) = training.npz_batches(path, 40, num_epochs=1, shuffle=False)
    count = ours['num_valid']
    (batch,) = data.eval_batches(
      'tokenised',
      40,
      split=split,
      feature_lengths={
        'inputs': ours['encoder_input_tokens'].shape[1],
        'targets': ours['decoder_input_tokens'].shape[1],
      },
    )
    assert count == batch['num_valid'] > 10
    for key, array in batch.items():
      if isinstance(array, np.ndarray):
        np.testing.assert_array_equal(ours[key], array)
    np.testing.assert_array_equal(
      training.npz_input_hashes(path), data.input_hashes('tokenised', split)
    )


def test_files_say_where_they_come_from(paths, bindings):
  metadata = training.npz_metadata(paths['train'])
  kept = f'{bindings["OUTPUT_DIR"]}/{metadata.pop("vocabulary_file")}'
  tokenizer = SentencePieceTokenizer(kept)
  assert metadata == {
    'task': 'tokenised',
    'split': 'train',
    'prefix': 'do: ',
    'vocabulary_fingerprint': tokenizer.fingerprint,
    'vocab_size': 30,
    'extra_ids': 0,
  }
  with open(f'{bindings["OUTPUT_DIR"]}/tokenize.gin', encoding='utf-8') as file:
    assert 'tokenize.run' in file.read()


def test_chosen_splits_and_few_examples(bindings, tmp_path):
  paths = call(
    bindings,
    OUTPUT_DIR=str(tmp_path),
    **{'tokenize.run.splits': ('train',), 'tokenize.run.max_examples': 5},
  )
  assert set(paths) == {'train'}
  (batch,) = training.npz_batches(paths['train'], 8, num_epochs=1)
  assert batch['num_valid'] == 5
  with pytest.raises(ValueError, match="no split 'dev'"):
    call(bindings, **{'tokenize.run.splits': ('dev',)})


@pytest.mark.slow
def test_a_run_on_the_files_is_one_that_reads_texts(paths, bindings, tmp_path):
  """The vocabulary and the rows seen come along without a copy by hand."""
  context = training.npz_metadata(paths['train'])
  training.train(
    training.multi_exit_stage(
      dataclasses.replace(training_cases.CONFIG, vocab_size=32),
      training.adamw(1e-3),
    ),
    lambda skip: training.npz_batches(paths['train'], 8, skip=skip),
    plan=training.Plan(num_steps=1),
    model_dir=tmp_path,
    vocabulary=bindings['OUTPUT_DIR'],
    seen_rows=training.npz_rows(paths['train'], paths['test']),
    context={**context, 'feature_lengths': {'inputs': 32, 'targets': 32}},
  )
  run = runs.load_run(tmp_path)
  assert run.tokenizer.fingerprint == context['vocabulary_fingerprint']
  assert run.prefix == 'do: '
  rows = records.read_training_rows(tmp_path / records.TRAINING_ROWS_NAME)
  for found, split in ((rows.trained, 'train'), (rows.selected, 'test')):
    np.testing.assert_array_equal(
      found, training.npz_input_hashes(paths[split])
    )

"""Folders of heads, words and gates that jobs would take from each other."""

import types

import numpy as np
import pytest
from cases import encoding_cases

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from calm_jax import checkpoints, data, evaluation, records, training
from calm_jax.cli import (
  find_label_words,
  joint_gates,
  own_outputs,
  part_rows,
  part_training,
  train_encoder_heads,
  tune_encoder,
)
from calm_jax.data.class_labels import ClassLabels

CONFIG = encoding_cases.CONFIG
JOINT = training.JudgedHeads(trained_on='joint_heads')
BEGUN = {'task': 'last_words', 'encoder_head_parameters': 'begun with'}
TREE = {
  'gate': {'kernel': np.ones((2, 3), 'f4')},
  'encoder_heads': {'kernel': np.ones((3, 2), 'f4')},
}


def save(folder, tree, **context):
  checkpoints.save(
    folder, 3, params=tree, config=CONFIG, context={**BEGUN, **context}
  )


def write_words(folder):
  folder.mkdir(parents=True)
  (folder / records.LABEL_WORDS_NAME).write_text('{}', encoding='utf-8')


def write_joint(run):
  trained = part_training.TrainedForRun(
    types.SimpleNamespace(config=CONFIG),
    types.SimpleNamespace(params=TREE, step=3),
    None,
    'last_words',
    str(run / 'encoder_gate_training'),
  )
  joint_gates.write_parts(
    str(run),
    trained,
    ClassLabels(('a', 'b'), ((2,), (3,))),
    gate='encoder_gate',
    heads=JOINT,
  )


@pytest.fixture(scope='module')
def joint(tmp_path_factory):
  """A run directory with a gate and heads that were trained together."""
  run = tmp_path_factory.mktemp('run')
  save(run / 'encoder_gate_training', TREE)
  write_joint(run)
  return run


def metadata(folder):
  return checkpoints.read_metadata(checkpoints.find_checkpoint(folder))


def test_a_joint_gate_says_which_heads_it_is_for(joint):
  heads = metadata(joint / 'joint_heads')['parameter_fingerprint']
  said = metadata(joint / 'encoder_gate')['context']
  assert said == {**BEGUN, 'encoder_head_parameters': heads}


def test_a_joint_training_goes_on_where_it_wrote(joint):
  directory = joint_gates.training_directory(str(joint), 'encoder_gate', JOINT)
  assert directory == str(joint / 'encoder_gate_training')
  write_joint(joint)


@pytest.mark.parametrize(
  ('gate', 'heads', 'said'),
  [
    ('other_gate', 'joint_heads', 'joint_heads holds .* give JOINT_HEADS'),
    ('encoder_gate', 'words', 'words holds .* give JOINT_HEADS'),
    ('encoder_gate', 'other_heads', 'other_heads holds .* give JOINT_HEADS'),
    ('words', 'new_heads', 'words holds something else .* give GATE'),
    ('new', 'new_training', "by way of 'new_training'; give three different"),
  ],
)
def test_a_joint_training_takes_no_folder_from_another(
  joint, gate, heads, said
):
  if heads == 'other_heads':
    save(joint / heads, {'encoder_heads': TREE['encoder_heads']}, seed=1)
  if not (joint / 'words').exists():
    write_words(joint / 'words')
  with pytest.raises(ValueError, match=said):
    joint_gates.training_directory(
      str(joint), gate, training.JudgedHeads(trained_on=heads)
    )


def test_a_gate_that_was_trained_alone_stays(tmp_path):
  save(tmp_path / 'encoder_gate', {'gate': TREE['gate']})
  with pytest.raises(ValueError, match='encoder_gate holds .* give GATE'):
    joint_gates.training_directory(str(tmp_path), 'encoder_gate', JOINT)
  assert checkpoints.latest_step(tmp_path / 'encoder_gate') == 3


def test_words_and_heads_share_no_folder(joint, tmp_path):
  with pytest.raises(ValueError, match='joint_heads holds what was trained'):
    find_label_words.run(model_dir=str(joint), task=None, name='joint_heads')
  write_words(tmp_path / 'label_words')
  for place in (
    {'model_dir': str(tmp_path)},
    {'model_dir': str(joint), 'joint_dir': str(tmp_path)},
  ):
    with pytest.raises(ValueError, match='label_words holds label words'):
      train_encoder_heads.run(
        **place,
        task=None,
        optimizer=None,
        plan=None,
        data=None,
        name='label_words',
      )


def test_a_task_without_validation_inputs(files, tmp_path):
  task = data.JsonlTask(
    name='bare_words',
    directory=files['DATA_DIR'],
    paths={'train': 'train.jsonl', 'test': 'test.jsonl'},
    vocabulary=files['VOCABULARY'],
  )
  part = own_outputs.Part(
    loaded=types.SimpleNamespace(feature_lengths={'inputs': 12, 'targets': 12}),
    model_dir=str(tmp_path),
    directory=str(tmp_path / 'part'),
    task=task,
    seed=0,
  )
  rows = part_rows.TaskRows(data.DataPlan(batch_size=2)).of(part)
  # It raised once training was over: there is nothing to measure on.
  assert rows.validation is None
  with pytest.raises(ValueError, match=r"bare_words has no split 'validation'"):
    find_label_words.run(model_dir=str(tmp_path), task=task)
  assert not list(tmp_path.iterdir())


def test_a_tuning_says_what_is_left_out_of_its_space(capsys):
  missing = evaluation.LeftOut('there is no gate')
  with pytest.raises(ValueError, match='nothing is left of the space'):
    tune_encoder.run(model_dir='-', task=None, space=(missing,), plan=None)
  assert 'left out of the space: there is no gate' in capsys.readouterr().out

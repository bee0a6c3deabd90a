"""The train job, end to end on a task that a tiny model learns."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from cases import training_cases
from fakes.counting_task import bindings_of
from tools.mains import run_main

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call

from calm_jax import checkpoints, data, records, runs, tokenizer, training
from calm_jax.cli import jobs, train


def test_training_leaves_a_run_directory(trained):
  run = runs.load_run(trained['MODEL_DIR'])
  assert run.config.num_decoder_layers == 3
  folder = pathlib.Path(trained['MODEL_DIR'])
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  for name in 'train.gin vocabulary.model parameters.txt losses.png'.split():
    assert (folder / name).exists(), name
  assert list((folder / 'tensorboard' / 'train').iterdir())


def test_training_decodes_on_the_way(trained):
  rows = records.read_jsonl(
    pathlib.Path(trained['MODEL_DIR']) / 'train_log.jsonl'
  )
  rows = [row for row in rows if row['kind'] == 'evaluation']
  # Asked for every 100 steps, possible every 50, and at the end.
  decoded = {row['step']: 'full_rouge_l' in row for row in rows}
  assert decoded == {50: False, 100: True, 120: True}
  assert rows[-1]['full_mean_exit_layer'] == 3.0
  assert 1.0 <= rows[-1]['early_mean_exit_layer'] <= 3.0


@pytest.mark.slow
def test_the_wrong_vocabulary_is_refused(trained, tmp_path):
  run = pathlib.Path(trained['MODEL_DIR'])
  vocabulary = run / 'vocabulary.model'
  kept = vocabulary.read_bytes()
  result = run_main(
    'build_vocabulary',
    f'--input={trained["DATA_DIR"]}/train.jsonl',
    f'--output={tmp_path / "other.model"}',
    '--vocab_size=26',
  )
  assert result.returncode == 0, result.stderr
  try:
    vocabulary.write_bytes((tmp_path / 'other.model').read_bytes())
    with pytest.raises(ValueError, match='not the vocabulary of this'):
      runs.load_run(run)
  finally:
    vocabulary.write_bytes(kept)
  # Training into the directory of another run touches nothing in it.
  with pytest.raises(ValueError, match='seed: expected 7, found 0'):
    call(
      'train',
      ['runs/train.gin', trained['task']],
      **bindings_of(trained),
      BATCH_SIZE=32,
      **{'train.run.seed': 7},
    )
  assert vocabulary.read_bytes() == kept


def fine_tune(trained, folder, **bindings):
  return call(
    'train',
    ['runs/train.gin', trained['task']],
    **{**bindings_of(trained), 'MODEL_DIR': str(folder)},
    TRAIN_STEPS=12,
    **{
      'train.run.initial_model_dir': trained['MODEL_DIR'],
      'training.warmup_cosine.warmup_steps': 2,
      'data.DataPlan.length_buckets': ((12, 12),),
      **bindings,
    },
  )


@pytest.mark.slow
def test_fine_tuning_starts_from_another_run(trained, tmp_path):
  fine_tune(
    trained,
    tmp_path / 'run',
    **{'training.Objective.frozen': ('token_embedder/.*',)},
  )
  before = runs.load_run(trained['MODEL_DIR']).params
  after = runs.load_run(tmp_path / 'run').params
  embeddings = [tree['token_embedder']['embedding'] for tree in (before, after)]
  assert (embeddings[0] == embeddings[1]).all()
  kernels = [
    tree['decoder']['logits_dense']['kernel'] for tree in (before, after)
  ]
  assert (kernels[0] != kernels[1]).any()


@pytest.mark.slow
def test_what_the_first_run_saw_counts_as_seen(trained, tmp_path):
  """And a run that has begun no longer needs the one it started from."""
  source, run = tmp_path / 'source', tmp_path / 'run'
  shutil.copytree(trained['MODEL_DIR'], source)
  first = records.read_training_rows(source / records.TRAINING_ROWS_NAME)
  records.write_training_rows(
    source / records.TRAINING_ROWS_NAME, [*first.trained, 7], first.selected
  )
  changes = {'train.run.initial_model_dir': str(source)}
  fine_tune(trained, run, **changes)
  rows = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  assert set(rows.trained) == {*first.trained, 7}
  shutil.rmtree(source)
  assert fine_tune(trained, run, **changes).step == 12
  rows = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  assert 7 in rows.trained


@pytest.mark.slow
def test_a_resumed_run_reads_the_same_data_or_none(trained, tmp_path):
  fine_tune(trained, tmp_path / 'run')
  with pytest.raises(ValueError, match='length_buckets'):
    fine_tune(
      trained, tmp_path / 'run', **{'data.DataPlan.length_buckets': ((6, 6),)}
    )


@pytest.mark.parametrize('begun', tokenizer.FORMS)
def test_a_run_goes_on_cutting_inputs_as_it_was_begun(begun, tmp_path, capsys):
  """Runs of 0.1.0 say nothing of it, and lost the EOS of long inputs."""
  before, now = data.DataPlan(inputs_cut=begun), data.DataPlan()
  checkpoints.save(
    tmp_path,
    1,
    params={'w': np.ones(2, np.float32)},
    config=training_cases.CONFIG,
    context=before.context(),
  )
  assert ('inputs_cut' in before.context()) == (begun == tokenizer.KEEPS_EOS)
  found = jobs.as_begun(now, str(tmp_path))
  assert found == before
  said = capsys.readouterr().out
  assert ('lost their end of sequence' in said) == (found != now)
  assert jobs.as_begun(now, str(tmp_path / 'new')) == now


def test_fine_tuning_another_shape_is_refused(trained, tmp_path):
  with pytest.raises(ValueError, match='mlp_dim 32 there, 64 here'):
    fine_tune(trained, tmp_path / 'run', **{'model.T5Config.mlp_dim': 64})


@pytest.mark.slow
def test_a_run_without_a_vocabulary_says_so(tmp_path):
  config = training_cases.CONFIG
  training.train(
    training.multi_exit_stage(config, training.adamw(1e-3)),
    training_cases.batches,
    plan=training.Plan(num_steps=1),
    model_dir=tmp_path,
  )
  with pytest.raises(ValueError, match="lacks .*'vocabulary_file'"):
    runs.load_run(tmp_path)


@pytest.mark.slow
def test_a_part_of_a_mixture_is_read_with_its_own_prefix(trained, tmp_path):
  parts = [
    data.JsonlTask(
      name=f'counting_{prefix}',
      directory=trained['DATA_DIR'],
      paths={'train': 'train.jsonl', 'validation': 'validation.jsonl'},
      vocabulary=trained['VOCABULARY'],
      prefix=f'{prefix} ',
    )
    for prefix in ('one', 'two')
  ]
  train.run(
    model_dir=str(tmp_path),
    task=data.MixtureTask('counting_mixture', parts),
    config=runs.load_run(trained['MODEL_DIR']).config,
    optimizer=training.adamw(1e-3),
    plan=training.Plan(num_steps=1),
    data=data.DataPlan(
      batch_size=8, feature_lengths={'inputs': 12, 'targets': 12}
    ),
  )
  for part in parts:
    assert jobs.load_run(str(tmp_path), part).prefix == part.prefix
  stranger = dataclasses.replace(parts[0], name='stranger', prefix='three ')
  with pytest.raises(ValueError, match="'three ', training had ''"):
    jobs.load_run(str(tmp_path), stranger)

"""A run directory that is stored here goes on, and as it would have then.

Made by the code of commit cdfaedb, which also trained on to step 8 and left
the parameters in trained_run_after.npz: a model and a classifier inside its
directory, both stopped at step 4 of 8.
"""

import dataclasses
import tarfile

import jax
import numpy as np
import pytest
from cases import training_cases
from tools import paths

from calm_jax import checkpoints, records, training

CONFIG = dataclasses.replace(
  training_cases.CONFIG, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4
)
GOLDEN = paths.ROOT / 'tests' / 'golden'


@pytest.fixture
def run(tmp_path):
  with tarfile.open(GOLDEN / 'trained_run.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path / 'run'


def go_on(stage, directory, **arguments):
  return training.train(
    stage,
    training_cases.batches,
    plan=training.Plan(
      num_steps=8, log_every=2, eval_every=2, checkpoint_every=4, max_to_keep=1
    ),
    model_dir=directory,
    **arguments,
  )


def optimizer():
  return training.adamw(
    training.warmup_cosine(
      0.02, total_steps=8, warmup_steps=3, final_fraction=0.1
    )
  )


def assert_close(params, named):
  """Other processors round otherwise; another step would be far off."""
  found = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert found.keys() == named.keys()
  for name, leaf in found.items():
    np.testing.assert_allclose(leaf, named[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def after():
  with np.load(GOLDEN / 'trained_run_after.npz') as arrays:
    return dict(arrays)


@pytest.mark.slow
def test_a_stored_model_goes_on(run, after, capsys):
  before = list(records.read_jsonl(run / 'train_log.jsonl'))
  result = go_on(
    training.multi_exit_stage(CONFIG, optimizer()),
    run,
    context={'task': 'copy', 'seed': 0},
    evaluators={
      'validation': training.teacher_forced_evaluator(
        CONFIG, lambda: [training_cases.batch(900)]
      )
    },
  )
  assert 'resumes at step 4 of 8' in capsys.readouterr().out
  assert result.step == 8 and result.best_step == 8
  assert_close(
    result.params,
    {name: leaf for name, leaf in after.items() if '/' in name},
  )
  rows = list(records.read_jsonl(run / 'train_log.jsonl'))
  assert rows[: len(before)] == before


def test_a_stored_classifier_goes_on(run, after, capsys):
  params = checkpoints.load_params(run / 'checkpoint_4').params
  result = go_on(
    training.classifier_stage(CONFIG, params, optimizer(), loss='balanced'),
    training.classifier_directory(run),
    context={'task': 'copy'},
  )
  assert 'resumes at step 4 of 8' in capsys.readouterr().out
  assert_close(
    result.params,
    {
      f'classifier/{name}': after[f'classifier_{name}']
      for name in ('kernel', 'bias')
    },
  )

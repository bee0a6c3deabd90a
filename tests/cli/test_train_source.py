"""The train_source job, and the policy that prunes by what it leaves."""

import pathlib

import numpy as np
import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import calibrate_again, call

from calm_jax import decoding, records, runs

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow


def train_source(files, **bindings):
  return call(
    'train_source',
    ['runs/train_source.gin', files['task']],
    **bindings_of(files),
    **{
      'TRAIN_STEPS': 40,
      'BATCH_SIZE': 16,
      'MAX_INPUTS': 64,
      'EVAL_INPUTS': 32,
      'training.warmup_cosine.warmup_steps': 5,
      **bindings,
    },
  )


@pytest.fixture(scope='module')
def with_scorer(trained):
  return trained, train_source(trained)


def test_the_job_leaves_the_model_alone(with_scorer):
  files, evaluation = with_scorer
  run = pathlib.Path(files['MODEL_DIR'])
  folder = run / 'source_scorer'
  # Other numbers would not be loaded: they have another fingerprint.
  scorer = runs.load_source_scorer(run)
  assert scorer.weights.shape == (32,) and np.std(scorer.weights) > 0
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  gates = [row['exit_accuracies'][1] for row in rows if row['kind'] == 'train']
  assert gates[-1] < gates[0]
  assert (folder / 'train_source.gin').exists()
  assert (folder / 'outputs_train.npz').exists()
  path = folder / 'evaluation.json'
  read = records.read_record(path, records.SourceScorerEvaluation)
  assert read.shifts == evaluation.shifts
  assert read.shifts[0].beta_shift is None and read.shifts[0].kept == 1.0
  kept = [one.kept for one in read.shifts]
  assert kept == sorted(kept, reverse=True) and kept[-1] < 1.0
  assert 'beta_shift inf: 100.0 % of sources kept' in read.describe()


def test_generation_prunes_by_the_scorer(with_scorer):
  files, _ = with_scorer
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/pruned_source.gin'],
    MODEL_DIR=files['MODEL_DIR'],
    INPUTS='one two three',
    KEEP=2,
    **{'generate.run.threshold': 0.0},
  )
  assert set(output.exit_layers) == {1}


def test_a_certificate_holds_for_its_plan(with_scorer, tmp_path):
  files, _ = with_scorer
  run = pathlib.Path(files['MODEL_DIR'])
  certificate = calibrate_again(
    files,
    tmp_path / 'calibration',
    'policies/pruned_source.gin',
    TOLERANCE=0.9,
    KEEP=4,
    BETA_SHIFT=1e9,
  )
  described = certificate.context['policy']['source_plan']
  assert described['scorer'] == decoding.describe(runs.load_source_scorer(run))
  assert (described['keep'], described['beta_shift']) == (4, 1e9)
  found = runs.policy_of(certificate, run)
  assert decoding.describe(found)['source_plan'] == described
  assert found.source_plan.keep == 4


def test_a_restart_decodes_nothing_and_another_budget_is_refused(with_scorer):
  files, evaluation = with_scorer
  assert train_source(files).shifts == evaluation.shifts
  with pytest.raises(ValueError, match='source_budget: expected'):
    train_source(files, SHARE=0.25)

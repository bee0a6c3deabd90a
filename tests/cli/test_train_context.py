"""The train_context job, and the policy that prunes by what it leaves."""

import pathlib

import numpy as np
import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call

from calm_jax import decoding, records, runs

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow


def train_context(files, **bindings):
  return call(
    'train_context',
    ['runs/train_context.gin', files['task']],
    **bindings_of(files),
    **{
      'TRAIN_STEPS': 40,
      'BATCH_SIZE': 16,
      'MAX_INPUTS': 64,
      'EVAL_INPUTS': 32,
      'GATE_SIZE': 4,
      'PRICE': 3.0,
      'LEARNING_RATE': 3e-2,
      'training.warmup_cosine.warmup_steps': 5,
      **bindings,
    },
  )


@pytest.fixture(scope='module')
def with_gates(trained):
  return trained, train_context(trained)


def test_the_job_leaves_the_model_alone(with_gates):
  files, evaluation = with_gates
  run = pathlib.Path(files['MODEL_DIR'])
  folder = run / 'context_gates'
  # Other numbers would not be loaded: they have another fingerprint.
  gates = runs.load_context_gates(run)
  assert gates.queries.shape[1:] == (32, 4) and np.std(gates.queries) > 0
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  kept = [row['exit_accuracies'][1] for row in rows if row['kind'] == 'train']
  assert kept[-1] < kept[0]
  assert (folder / 'train_context.gin').exists()
  assert (folder / 'outputs_train.npz').exists()
  path = folder / 'evaluation.json'
  read = records.read_record(path, records.ContextGateEvaluation)
  assert read.shifts == evaluation.shifts
  assert read.shifts[0].beta_shift is None and read.shifts[0].kept == 1.0
  assert read.shifts[0].most == read.longest
  kept = [one.kept for one in read.shifts]
  assert kept == sorted(kept, reverse=True) and kept[-1] < 1.0
  assert 'beta_shift inf: 100.0 % of the past kept' in read.describe()


def test_a_certificate_holds_for_its_plan(with_gates, tmp_path):
  files, _ = with_gates
  run = pathlib.Path(files['MODEL_DIR'])
  shifts = (1e9, 0.0)
  certificate = call(
    'calibrate',
    ['runs/calibrate.gin', 'policies/pruned_context.gin', files['task']],
    **bindings_of(files),
    TOLERANCE=0.9,
    SLOTS=4,
    OUTPUT_DIR=str(tmp_path / 'calibration'),
    **{
      'evaluation.CalibrationPlan.settings': tuple(
        {'layer_plan.beta_shift': shift} for shift in shifts
      ),
      'evaluation.BatchLayout.batch_size': 26,
    },
  )
  assert certificate.certified
  found = runs.policy_of(certificate, run).layer_plan
  assert isinstance(found, decoding.PrunedContext)
  assert found.slots == 4 and found.beta_shift in shifts
  np.testing.assert_array_equal(
    found.gates.bias, runs.load_context_gates(run).bias
  )


def test_a_restart_decodes_nothing_and_another_price_is_refused(with_gates):
  files, evaluation = with_gates
  assert train_context(files).shifts == evaluation.shifts
  with pytest.raises(ValueError, match='context_price: expected'):
    train_context(files, PRICE=0.25)

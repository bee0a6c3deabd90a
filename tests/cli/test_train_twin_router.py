"""From a run to a certificate for a router of small twins: three jobs."""

import pathlib

import numpy as np
import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call
from fakes.counting_task import bindings_of

from calm_jax import decoding, records, runs, training
from calm_jax.benchmarks import (
  measured_rows,
  twin_oracles,
  twin_oracles_table,
)

pytestmark = pytest.mark.slow
PLAN = {
  'TRAIN_STEPS': 40,
  'BATCH_SIZE': 16,
  'MAX_INPUTS': 60,
  'EVAL_INPUTS': 20,
  'LENGTH_BUCKETS': (),
  'training.warmup_cosine.warmup_steps': 4,
}


def train_router(trained, **bindings):
  return call(
    'train_twin_router',
    ['runs/train_twin_router.gin', trained['task']],
    **bindings_of(trained),
    **{**PLAN, **bindings},
  )


@pytest.fixture(scope='module')
def evaluation(trained):
  call(
    'train_twins',
    ['runs/train_twins.gin', trained['task']],
    **bindings_of(trained),
    **PLAN,
    HIDDEN_UNITS=4,
    LEARNING_RATE=1e-2,
  )
  return train_router(trained)


def test_the_job_leaves_the_model_and_its_twins_alone(evaluation, trained):
  run = pathlib.Path(trained['MODEL_DIR'])
  folder = run / 'twin_router'
  # Others would not be loaded: they have other fingerprints.
  router = runs.load_twin_router(run)
  assert np.std(router.weights) > 0 and router.bias.shape[1] == 3
  read = records.read_record(
    folder / 'evaluation.json', records.TwinRouterEvaluation
  )
  assert read.thresholds == evaluation.thresholds
  assert (read.share, read.reads_states, read.steps) == (0.5, True, 40)
  costs = [one.cost for one in read.thresholds]
  assert costs[0] == 1.0 and costs == sorted(costs, reverse=True)
  assert read.thresholds[0].agreement == 1.0
  assert 'a router that sees the state' in read.describe()
  assert (folder / 'train_twin_router.gin').exists()
  assert (folder / 'outputs_train.npz').exists()


def test_the_control_is_trained_in_a_folder_of_its_own(evaluation, trained):
  found = train_router(trained, TWIN_ROUTER='fixed', READS_STATES=False)
  assert not found.reads_states and 'no state' in found.describe()
  router = runs.load_twin_router(trained['MODEL_DIR'], name='fixed')
  assert not np.asarray(router.weights).any()


def test_a_threshold_is_certified_and_served(evaluation, trained):
  certificate = call(
    'calibrate',
    [
      'runs/calibrate.gin',
      'policies/twin_router.gin',
      trained['task'],
    ],
    **bindings_of(trained),
    TOLERANCE=0.6,
    OUTPUT_DIR=str(pathlib.Path(trained['MODEL_DIR']) / 'routed_calibration'),
    **{'evaluation.BatchLayout.batch_size': 26},
  )
  assert certificate.certified
  plan = runs.policy_of(certificate, trained['MODEL_DIR']).layer_plan
  assert isinstance(plan, decoding.RoutedFeedForward)
  assert plan.threshold == certificate.setting < 1.0
  np.testing.assert_array_equal(
    plan.router.bias, runs.load_twin_router(trained['MODEL_DIR']).bias
  )


def test_oracles_show_it_at_their_budgets(evaluation, trained, tmp_path):
  rng = np.random.default_rng(0)
  rows = [
    {'inputs': rng.integers(3, 20, 5), 'targets': rng.integers(3, 20, 4)}
    for _ in range(8)
  ]
  training.write_npz(tmp_path / 'rows.npz', rows)
  given = [
    f'--run_dir={trained["MODEL_DIR"]}',
    f'--tokens={tmp_path / "rows.npz"}',
    '--num_tokens=20',
    f'--output={tmp_path / "found.json"}',
  ]
  twin_oracles.main([*given, '--router=twin_router'])
  measured = measured_rows.read(tmp_path / 'found.json', records.TwinOracleRow)
  assert 'router' in twin_oracles_table.table(measured).header
  # With all blocks it is the model, and no pattern is better than the best.
  last = measured.rows[-1]
  np.testing.assert_allclose(last.router, last.full, rtol=1e-4)
  assert all(row.router < 0 for row in measured.rows)
  with pytest.raises(SystemExit, match='no router of small twins in'):
    twin_oracles.main([*given, '--router=nowhere'])


def test_another_budget_is_another_router(evaluation, trained):
  assert train_router(trained).thresholds == evaluation.thresholds
  with pytest.raises(ValueError, match='twin_routing'):
    train_router(trained, SHARE=0.25)
  with pytest.raises(FileNotFoundError, match='no set of small twins in'):
    train_router(trained, SMALL_TWINS='nowhere')

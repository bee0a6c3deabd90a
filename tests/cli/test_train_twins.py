"""From a run to a certificate for small twins: two jobs."""

import pathlib

import numpy as np
import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call
from fakes.counting_task import bindings_of

from calm_jax import decoding, records, runs, training
from calm_jax.benchmarks import measured_rows, twin_oracles

pytestmark = pytest.mark.slow
PLAN = {
  'TRAIN_STEPS': 60,
  'BATCH_SIZE': 16,
  'LEARNING_RATE': 1e-2,
  'HIDDEN_UNITS': 4,
  'MAX_INPUTS': 60,
  'EVAL_INPUTS': 20,
  'LENGTH_BUCKETS': (),
  'training.warmup_cosine.warmup_steps': 4,
}


@pytest.fixture(scope='module')
def evaluation(trained):
  return call(
    'train_twins',
    ['runs/train_twins.gin', trained['task']],
    **bindings_of(trained),
    **PLAN,
  )


def test_twins_keep_more_than_nothing(evaluation, trained, capsys):
  folder = pathlib.Path(trained['MODEL_DIR']) / 'small_twins'
  found = records.read_record(
    folder / 'evaluation.json', records.TwinEvaluation
  )
  assert found.patterns == evaluation.patterns
  assert found.steps == 60 and found.hidden_units == 4
  kept = {pattern.choices: pattern for pattern in found.patterns}
  layers = len(found.patterns[0].choices)
  none, twins, own = (kept[(choice,) * layers] for choice in (0, 2, 1))
  assert twins.divergence < none.divergence
  assert own.agreement == 1.0 and abs(own.divergence) < 1e-6
  assert (none.hidden_units, twins.hidden_units) == (0, 4 * layers)
  assert 'for each layer 0 none' in found.describe()
  assert runs.load_twins(trained['MODEL_DIR']).num_layers == layers


def test_a_choice_is_certified_and_served(evaluation, trained):
  """The setting is a tuple, and is found again in the certificate."""
  choices = ((1, 1, 1), (2, 1, 1), (2, 2, 2))
  policies = ['policies/twins.gin']
  certificate = call(
    'calibrate',
    ['runs/calibrate.gin', *policies, trained['task']],
    **bindings_of(trained),
    TOLERANCE=0.6,
    CHOICES=choices[0],
    OUTPUT_DIR=str(pathlib.Path(trained['MODEL_DIR']) / 'twin_calibration'),
    **{
      'evaluation.CalibrationPlan.settings': tuple(
        {'layer_plan.choices': chosen} for chosen in choices
      ),
      'evaluation.BatchLayout.batch_size': 26,
    },
  )
  assert certificate.certified
  policy = runs.policy_of(certificate, trained['MODEL_DIR'])
  plan = policy.layer_plan
  assert isinstance(plan, decoding.ChosenFeedForward)
  assert plan.choices in choices
  np.testing.assert_array_equal(
    plan.twins.out, runs.load_twins(trained['MODEL_DIR']).out
  )


def test_oracles_of_the_run_are_measured(evaluation, trained, tmp_path, capsys):
  """All 27 patterns of three layers, on a few tokens of a token file."""
  rng = np.random.default_rng(0)
  rows = [
    {'inputs': rng.integers(3, 20, 5), 'targets': rng.integers(3, 20, 4)}
    for _ in range(12)
  ]
  training.write_npz(tmp_path / 'rows.npz', rows)
  given = [
    f'--run_dir={trained["MODEL_DIR"]}',
    f'--tokens={tmp_path / "rows.npz"}',
    '--batch_size=4',
  ]
  twin_oracles.main(
    [*given, '--num_tokens=40', f'--output={tmp_path / "found.json"}']
  )
  assert 'on permuted labels' in capsys.readouterr().out
  measured = measured_rows.read(tmp_path / 'found.json', records.TwinOracleRow)
  assert measured.flags['num_tokens'] == 40
  assert measured.context.details['num_patterns'] == 27
  scores = [row.oracle for row in measured.rows]
  assert scores == sorted(scores) and len(scores) == 3
  for row in measured.rows:
    assert row.single - 1e-9 <= row.mix <= row.oracle + 1e-9
    assert row.mean_cost <= row.budget + 1e-9
  assert measured.rows[-1].full <= measured.rows[-1].single
  with pytest.raises(SystemExit, match='num_tokens 0 must be'):
    twin_oracles.main([*given, '--num_tokens=0'])
  with pytest.raises(SystemExit, match='no set of small twins in'):
    twin_oracles.main([*given, '--twins=nowhere'])
  with pytest.raises(SystemExit, match='give --run_dir and --tokens'):
    twin_oracles.main([])

"""The train_router job, and the policy that exits by what it leaves."""

import pathlib

import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import calibrate_again, call

from calm_jax import decoding, records, runs

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow


def train_router(files, **bindings):
  return call(
    'train_router',
    ['runs/train_router.gin', files['task']],
    **bindings_of(files),
    **{
      'TRAIN_STEPS': 60,
      'BATCH_SIZE': 16,
      'MAX_INPUTS': 64,
      'EVAL_INPUTS': 32,
      'LEARNING_RATE': 2e-2,
      'training.warmup_cosine.warmup_steps': 5,
      **bindings,
    },
  )


@pytest.fixture(scope='module')
def with_router(trained):
  return trained, train_router(trained)


def test_the_router_job_leaves_the_model_alone(with_router):
  files, evaluation = with_router
  run = pathlib.Path(files['MODEL_DIR'])
  folder = run / 'router'
  # Other numbers would not be loaded: they have another fingerprint.
  router = runs.load_router(run)
  assert router.state.shape == (32, 1) and router.bias.shape == (2,)
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  assert (folder / 'train_router.gin').exists()
  assert (folder / 'outputs_train.npz').exists()
  path = folder / 'evaluation.json'
  read = records.read_record(path, records.RouterEvaluation)
  assert read.depths == evaluation.depths and read.kept == evaluation.kept
  assert read.depths[0].threshold == 1.0 and read.depths[0].differing == 0.0
  assert read.num_layers == 3 == len(read.differing) == len(read.kept)
  assert 1.0 <= read.needed_layers <= 3.0


def test_generation_exits_by_the_router(with_router):
  files, _ = with_router
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/router.gin'],
    MODEL_DIR=files['MODEL_DIR'],
    INPUTS='one two three',
    **{'generate.run.threshold': 0.0},
  )
  assert len(output.exit_layers) == len(output.tokens) > 0
  assert set(output.exit_layers) == {1}


def test_a_certificate_holds_for_its_router(with_router, tmp_path):
  files, _ = with_router
  run = pathlib.Path(files['MODEL_DIR'])
  certificate = calibrate_again(
    files, tmp_path / 'calibration', 'policies/router.gin', TOLERANCE=0.4
  )
  described = certificate.context['policy']['exit_rule']
  assert described['router'] == decoding.describe(runs.load_router(run))
  found = runs.policy_of(certificate, run)
  assert decoding.describe(found)['exit_rule']['router'] == described['router']


def test_a_restart_decodes_nothing_and_another_slack_is_refused(with_router):
  files, evaluation = with_router
  assert train_router(files).depths == evaluation.depths
  with pytest.raises(ValueError, match='router_slack: expected'):
    train_router(files, SLACK=0.5)

"""The train_gates job, and policies that exit by what it leaves."""

import pathlib

import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import calibrate_again, call

from calm_jax import decoding, records, runs

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def with_gate(trained):
  evaluation = call(
    'train_gates',
    ['runs/train_gates.gin', trained['task']],
    **bindings_of(trained),
    TRAIN_STEPS=120,
    BATCH_SIZE=32,
    HIDDEN_UNITS=8,
    LEARNING_RATE=2e-2,
    **{'training.warmup_cosine.warmup_steps': 10},
  )
  return trained, evaluation


def test_the_gate_job_leaves_the_model_alone(with_gate):
  files, evaluation = with_gate
  run = pathlib.Path(files['MODEL_DIR'])
  folder = run / 'gate'
  # Other numbers would not be loaded: they have another fingerprint.
  gate = runs.load_gate(run)
  assert gate.state.shape == (1, 32, 8) and gate.layer_bias.shape == (2, 8)
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  assert (folder / 'train_gates.gin').exists()
  read = records.read_record(folder / 'evaluation.json', records.GateEvaluation)
  assert read.num_tokens == evaluation.num_tokens > 100
  assert [layer.exit_layer for layer in read.layers] == [1, 2]
  assert len(read.depths) == 9 and read.depths == evaluation.depths


def test_generation_exits_by_the_gate(with_gate):
  files, _ = with_gate
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/gate.gin'],
    MODEL_DIR=files['MODEL_DIR'],
    INPUTS='one two three',
    **{'generate.run.threshold': 0.0},
  )
  assert len(output.exit_layers) == len(output.tokens) > 0
  assert min(output.exit_layers) == 1
  assert 0 < max(output.confidences) < 1


@pytest.mark.slow
def test_a_certificate_holds_for_its_gate_only(with_gate, tmp_path):
  files, _ = with_gate
  run = pathlib.Path(files['MODEL_DIR'])
  certificate = calibrate_again(
    files, tmp_path / 'calibration', 'policies/gate.gin', TOLERANCE=0.4
  )
  measure = certificate.context['policy']['exit_rule']['measure']
  assert measure == decoding.describe(runs.load_gate(run))
  found = runs.policy_of(certificate, run)
  call(
    'train_gates',
    ['runs/train_gates.gin', files['task']],
    **bindings_of(files),
    TRAIN_STEPS=20,
    GATE='linear',
    GATE_TARGET='quantile',
    HIDDEN_UNITS=0,
    **{'training.warmup_cosine.warmup_steps': 2},
  )
  described = decoding.describe(found)
  other = runs.load_gate(run, name='linear')
  assert decoding.describe(other) != described['exit_rule']['measure']

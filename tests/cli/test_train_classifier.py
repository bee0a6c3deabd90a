"""The train_classifier job, and policies that exit by what it leaves."""

import pathlib

import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call

from calm_jax import decoding, pipeline, records, runs
from calm_jax.cli import gin_runner


@pytest.fixture(scope='module')
def with_classifier(trained):
  evaluation = call(
    'train_classifier',
    ['runs/train_classifier.gin', trained['task']],
    **bindings_of(trained),
    TRAIN_STEPS=120,
    BATCH_SIZE=32,
    LEARNING_RATE=2e-2,
    **{'training.warmup_cosine.warmup_steps': 10},
  )
  return trained, evaluation


@pytest.mark.slow
def test_the_classifier_job_leaves_the_model_alone(with_classifier):
  files, evaluation = with_classifier
  run = pathlib.Path(files['MODEL_DIR'])
  folder = run / 'classifier'
  # Other numbers would not be loaded: they have another fingerprint.
  classifier = runs.load_classifier(run)
  assert classifier.kernel.shape == (32,)
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  assert (folder / 'train_classifier.gin').exists()
  # The rows that the model and its classifier were trained on are the same.
  trained_on = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  assert len(trained_on.trained) == 700 and len(trained_on.selected) == 40
  read = records.read_record(
    folder / 'evaluation.json', records.ClassifierEvaluation
  )
  assert [layer.exit_layer for layer in read.layers] == [1, 2]
  assert read.num_tokens == evaluation.num_tokens > 100
  assert all(0 < layer.agreement <= 1 for layer in read.layers)


def test_generation_exits_by_the_classifier(with_classifier):
  files, _ = with_classifier
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/classifier.gin'],
    MODEL_DIR=files['MODEL_DIR'],
    INPUTS='one two three',
    **{'generate.run.threshold': 0.0},
  )
  # Eq. 5 at 0 asks for 0.1 at the first token and less after it.
  assert len(output.exit_layers) == len(output.tokens) > 0
  assert min(output.exit_layers) == 1
  assert 0 < max(output.confidences) < 1


@pytest.mark.slow
def test_a_certificate_holds_for_its_classifier_only(with_classifier):
  files, _ = with_classifier
  policy = 'policies/classifier.gin'
  run = pathlib.Path(files['MODEL_DIR'])
  output_dir = run / 'classifier' / 'calibration'
  certificate = call(
    'calibrate',
    ['runs/calibrate.gin', policy, files['task']],
    **bindings_of(files),
    TOLERANCE=0.4,
    **{
      'evaluation.CalibrationPlan.settings': (0.9, 0.7),
      'evaluation.BatchLayout.batch_size': 26,
      'calibrate.run.output_dir': str(output_dir),
    },
  )
  measure = certificate.context['policy']['exit_rule']['measure']
  assert measure == decoding.describe(runs.load_classifier(run))
  assert measure['kernel'].startswith('float32[32] sha256 ')
  path = str(output_dir / 'certificate.json')
  result = call(
    'evaluate',
    ['runs/evaluate.gin', policy, files['task']],
    **bindings_of(files),
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluate.run.certificate': path,
      'evaluate.run.output_dir': str(run / 'classifier' / 'evaluation'),
      'evaluation.ComparisonPlan.sweep_thresholds': (),
      'evaluation.ComparisonPlan.timing_batch_sizes': (),
    },
  )
  assert result.certificate.measure == 'Classifier'
  call(
    'train_classifier',
    ['runs/train_classifier.gin', files['task']],
    **bindings_of(files),
    TRAIN_STEPS=20,
    CLASSIFIER='balanced',
    CLASSIFIER_LOSS='balanced',
    **{'training.warmup_cosine.warmup_steps': 2},
  )
  gin_runner.parse([policy], [f'MODEL_DIR = {str(run)!r}'])
  query = gin.config.query_parameter
  own = query('%POLICY').scoped_configurable_fn()
  load = dict(policy=own, certificate=path)
  assert pipeline.TextGenerator.from_run(run, **load)
  bindings = [f'MODEL_DIR = {str(run)!r}', "CLASSIFIER = 'balanced'"]
  gin_runner.parse([policy], bindings)
  other = query('%POLICY').scoped_configurable_fn()
  with pytest.raises(ValueError, match='measure.kernel: certified for'):
    pipeline.TextGenerator.from_run(run, **{**load, 'policy': other})

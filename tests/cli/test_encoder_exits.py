"""Sources that leave the encoder, with tokens that exit, through all jobs."""

import dataclasses
import json
import pathlib

import pytest
from fakes import counting_task

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')
pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')

from cases.job_cases import call

import calm_jax
from calm_jax import decoding, exits, records
from calm_jax.cli import evaluate, export, generate
from calm_jax.pipeline import files as text_files

MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
SIMILAR = exits.ConfidenceExit(exits.StateSimilarity(), 0.5)
BOTH = decoding.ComputePolicy(
  encoder_exit=decoding.StoppedEncoder(SIMILAR), exit_rule=MARGIN
)
DRAFTS = dataclasses.replace(
  BOTH, cache_fill=decoding.CatchUp(), verification=decoding.VerifyEvery(2)
)
# Similarity is of two layers: at a threshold of 0 sources leave at the second.
LEAST = 2
SOURCES = 'encoder_exit.rule.threshold.value'
TOKENS = 'exit_rule.threshold.value'
PATH = (
  {SOURCES: 1.0, TOKENS: 1.0},
  {SOURCES: 0.5, TOKENS: 1.0},
  {SOURCES: 0.0, TOKENS: 0.4},
)
# Tokens exit as well, by a rule of their own.
_TOKENS = """
from __gin__ import dynamic_registration
from calm_jax import decoding
from calm_jax import exits
decoding.ComputePolicy.exit_rule = @tokens/exits.ConfidenceExit()
tokens/exits.ConfidenceExit.measure = @exits.SoftmaxMargin()
tokens/exits.ConfidenceExit.threshold = @tokens/exits.ConstantThreshold()
tokens/exits.ConstantThreshold.value = 1.0
"""
_STEPS = {
  'training.Plan.eval_every': 20,
  'training.warmup_cosine.warmup_steps': 5,
  'data.DataPlan.length_buckets': ((12, 12),),
}


@pytest.mark.parametrize(
  'entrance',
  [
    lambda: evaluate.run(model_dir='-', task=None, policy=DRAFTS),
    lambda: export.run(model_dir='-', output_dir='-', policy=DRAFTS),
    lambda: generate.run(
      model_dir='-', policy=DRAFTS, files=text_files.TextFiles(inputs=['a'])
    ),
  ],
)
def test_checked_drafts_are_refused_at_every_entrance(entrance):
  with pytest.raises(
    ValueError, match='StoppedEncoder leaves parts of its enc'
  ):
    entrance()


def bindings_of(files):
  """What of the task is bound by gin."""
  return {name: files[name] for name in files if name.isupper()}


class Reference(str):
  """A value that gin reads as it is."""

  __repr__ = str.__str__


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A model of three encoder layers that decoded from all of them."""
  folder = tmp_path_factory.mktemp('stopped') / 'data'
  files = counting_task.write(folder)
  task = pathlib.Path(files['task'])
  text = task.read_text(encoding='utf-8')
  text = text.replace('num_encoder_layers = 1', 'num_encoder_layers = 3')
  task.write_text(text, encoding='utf-8')
  both = folder / 'tokens.gin'
  both.write_text(_TOKENS, encoding='utf-8')
  call(
    'train',
    ['runs/train.gin', 'policies/encoder_similarity.gin', files['task']],
    **bindings_of(files),
    TRAIN_STEPS=40,
    BATCH_SIZE=32,
    LEARNING_RATE=5e-3,
    DECODE_EVERY=40,
    **{
      'train.run.objective': Reference('@training.SampledEncoderDepth()'),
      'decoding_evaluator.DecodingPlan.max_examples': 8,
      **_STEPS,
    },
  )
  return {**files, 'both': str(both)}


def job(name, files, **bindings):
  policy = ['policies/encoder_similarity.gin', files['both']]
  return call(
    name,
    [f'runs/{name}.gin', *policy, files['task']],
    **bindings_of(files),
    **bindings,
  )


@pytest.fixture(scope='module')
def calibrated(trained):
  """Calibrated along a path of both thresholds."""
  certificate = job(
    'calibrate',
    trained,
    TOLERANCE=0.95,
    FULL_GRID=True,
    **{
      'evaluation.CalibrationPlan.settings': PATH,
      'evaluation.BatchLayout.batch_size': 26,
    },
  )
  return trained, certificate


@pytest.mark.slow
def test_one_certificate_of_both(calibrated):
  files, certificate = calibrated
  assert certificate.certified and certificate.setting == PATH[-1]
  context = certificate.context
  assert context['num_encoder_layers'] == 3
  assert context['mean_encoder_layers'][0] == 3
  mean = context['mean_encoder_layers'][-1]
  assert mean < 3
  words = f'after {mean:.2f} of 3 layers on average'
  assert words in certificate.describe()
  path = pathlib.Path(files['MODEL_DIR']) / 'calibration' / 'loss_table.npz'
  table = records.read_loss_table(path)
  assert (table.mean_encoder_layers == context['mean_encoder_layers']).all()
  assert table.mean_exit_layers[-1] < 3


@pytest.mark.slow
def test_the_evaluation_of_both(calibrated, capsys):
  files, _ = calibrated
  result = job(
    'evaluate',
    files,
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.ComparisonPlan.sweep_thresholds': (),
      'evaluation.ComparisonPlan.timing_batch_sizes': (2,),
      'evaluation.ComparisonPlan.timing_batches': 1,
      'evaluation.ComparisonPlan.timing_repeats': 1,
    },
  )
  said = capsys.readouterr().out
  assert result.num_encoder_layers == 3
  rows = {row.kind: row for row in result.rows}
  assert rows['certified'].mean_encoder_layer == LEAST
  assert rows['full'].mean_encoder_layer != rows['full'].mean_encoder_layer
  assert result.timings[1].mean_encoder_layer == LEAST
  assert result.timings[1].ceiling > 1
  assert 'StateSimilarity in the encoder' in result.certificate.measure
  assert result.samples[0].early.encoder_exit_layer == LEAST
  assert 'encoder layers: per input, of 3.' in said
  folder = pathlib.Path(files['MODEL_DIR']) / 'evaluation'
  page = (folder / 'report.html').read_text(encoding='utf-8')
  assert 'encoder layers per input' in page and 'encoder layer 2 of' in page


@pytest.mark.slow
def test_rows_of_generate_have_it(calibrated, tmp_path, capsys):
  files, _ = calibrated
  lines = tmp_path / 'inputs.jsonl'
  records.write_jsonl(lines, [{'inputs': 'one two three'}, {'inputs': 'ten'}])
  output = tmp_path / 'rows.jsonl'
  policy = ['policies/encoder_similarity.gin', files['both']]
  options = dict(MODEL_DIR=files['MODEL_DIR'])
  call(
    'generate',
    ['runs/generate.gin', *policy],
    INPUT_FILE=str(lines),
    OUTPUT_FILE=str(output),
    **options,
  )
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row['encoder_exit_layer'] for row in rows] == [LEAST] * 2
  assert all(row['certified'] for row in rows)
  assert 'mean encoder layer 2.00' in capsys.readouterr().err
  (text,) = call(
    'generate',
    ['runs/generate.gin', *policy],
    INPUTS=['one two three'],
    **options,
  )
  assert text.encoder_exit_layer == LEAST
  assert 'encoder 2 of 3' in capsys.readouterr().out
  whole = calm_jax.load(files['MODEL_DIR']).at_full_depth()
  assert whole.generate(['one two three'])[0].encoder_exit_layer is None


@pytest.mark.slow
def test_a_tuning_of_both(calibrated):
  files, _ = calibrated
  tuning = call(
    'tune',
    ['runs/tune.gin', 'spaces/encoder.gin', files['task']],
    **bindings_of(files),
    TOLERANCE=0.95,
    THRESHOLDS=(0.5,),
    ENCODER=(0.9, 0.0),
    BOTH=({'encoder_exit.rule.threshold': 0.0, TOKENS: 0.4},),
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.TuningPlan.timed_batches': 1,
      'evaluation.TuningPlan.repeats': 1,
      'evaluation.TuningPlan.least_gain': 1.0,
    },
  )
  by_label = {one.label: one for one in tuning.candidates}
  alone = by_label['full depth, encoder exits, threshold 0']
  assert alone.mean_encoder_layer == LEAST and alone.mean_exit_layer == 3
  (both,) = [
    one for one in tuning.candidates if one.policy == 'exact, encoder exits'
  ]
  assert both.mean_encoder_layer == LEAST and both.mean_exit_layer < 3
  assert tuning.num_encoder_layers == 3
  exact = by_label['exact, threshold 0.5'].mean_encoder_layer
  assert exact != exact

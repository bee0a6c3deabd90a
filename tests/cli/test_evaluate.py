"""The evaluate job: its table and page, and what it refuses."""

import pathlib

import pytest
from fakes.counting_task import bindings_of

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import calibrate_again, call

from calm_jax import records


def test_evaluation_writes_table_and_page(calibrated, capsys):
  result = call(
    'evaluate',
    [
      'runs/evaluate.gin',
      'policies/softmax_margin.gin',
      calibrated['task'],
    ],
    **bindings_of(calibrated),
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.ComparisonPlan.sweep_thresholds': (0.5,),
      'evaluation.ComparisonPlan.timing_batch_sizes': (2,),
      'evaluation.ComparisonPlan.timing_batches': 1,
      'evaluation.ComparisonPlan.timing_repeats': 1,
    },
  )
  kinds = [row.kind for row in result.rows]
  assert kinds[0] == 'full' and {'static', 'oracle', 'baseline'} <= set(kinds)
  folder = pathlib.Path(calibrated['MODEL_DIR']) / 'evaluation'
  read = records.read_record(folder / 'result.json', records.EvaluationResult)
  assert read.num_examples == result.num_examples
  assert '<html' in (folder / 'report.html').read_text(encoding='utf-8')
  assert 'full model' in capsys.readouterr().out
  for row in result.rows:
    if row.kind == 'oracle':
      assert row.mean_exit_layer <= 3


@pytest.mark.slow
def test_a_budget_is_calibrated_and_evaluated_with(calibrated, tmp_path):
  """Its decodes are capped, its certificate is its own, its use is told."""
  policy = 'policies/softmax_margin_budget.gin'
  caps = dict(LAYERS_PER_REQUEST=24, LAYERS_PER_TOKEN=2)
  certificate = calibrate_again(
    calibrated,
    tmp_path,
    policy=policy,
    TOLERANCE=0.9,
    FULL_GRID=True,
    **caps,
  )
  assert certificate.certified
  rule = certificate.context['policy']['exit_rule']
  assert (rule['type'], rule['per_request'], rule['per_token']) == (
    'LayerBudget',
    24,
    2,
  )
  table = records.read_loss_table(tmp_path / 'loss_table.npz')
  assert (table.mean_exit_layers <= 2).all()
  files = ['runs/evaluate.gin', policy, calibrated['task']]
  bindings = dict(
    **bindings_of(calibrated),
    **caps,
    CERTIFICATE=str(tmp_path / 'certificate.json'),
    OUTPUT_DIR=str(tmp_path / 'evaluation'),
  )
  options = {
    'evaluation.BatchLayout.batch_size': 26,
    'evaluation.ComparisonPlan.sweep_thresholds': (),
    'evaluation.ComparisonPlan.timing_batch_sizes': (),
  }
  result = call('evaluate', files, **bindings, **options)
  assert result.budget.largest_token <= 2
  assert result.budget.largest_request <= 24
  page = tmp_path / 'evaluation' / 'report.html'
  assert result.budget.describe() in page.read_text(encoding='utf-8')
  bindings['LAYERS_PER_REQUEST'] = 25
  with pytest.raises(ValueError, match=r'policy\S*: certified for'):
    call('evaluate', files, **bindings, **options)


@pytest.mark.parametrize('split', ['validation', 'calibration'])
def test_only_fresh_splits_are_evaluated(calibrated, split):
  with pytest.raises(ValueError, match=f"split '{split}' was trained on"):
    call(
      'evaluate',
      ['runs/evaluate.gin', 'policies/softmax_margin.gin', calibrated['task']],
      **bindings_of(calibrated),
      **{'evaluate.run.split': split},
    )


def test_evaluation_without_a_certificate_says_what_to_run(trained, tmp_path):
  with pytest.raises(FileNotFoundError, match='calm_jax.cli.calibrate'):
    call(
      'evaluate',
      [
        'runs/evaluate.gin',
        'policies/softmax_margin.gin',
        trained['task'],
      ],
      **bindings_of(trained),
      **{'evaluate.run.certificate': str(tmp_path / 'none.json')},
    )


@pytest.mark.slow
def test_weights_in_8_bits_are_certified_evaluated_and_decoded_with(
  calibrated, tmp_path, capsys
):
  """The certificate says which weights; the other jobs take them from it."""
  certificate = calibrate_again(
    calibrated, tmp_path, WEIGHTS='int8', TOLERANCE=0.9, TIMED_INPUTS=1
  )
  assert certificate.certified
  assert certificate.context['weights'] == {'type': 'int8'}
  path = str(tmp_path / 'certificate.json')
  policy = 'policies/softmax_margin.gin'
  result = call(
    'evaluate',
    ['runs/evaluate.gin', policy, calibrated['task']],
    **bindings_of(calibrated),
    CERTIFICATE=path,
    OUTPUT_DIR=str(tmp_path / 'evaluation'),
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.ComparisonPlan.sweep_thresholds': (0.5,),
      'evaluation.ComparisonPlan.timing_batch_sizes': (2,),
      'evaluation.ComparisonPlan.timing_batches': 1,
      'evaluation.ComparisonPlan.timing_repeats': 1,
    },
  )
  names = [row.name for row in result.rows]
  assert names[0] == 'full model'
  assert 'all layers, weights in 8 bits' in names
  assert result.context.details['decoding']['weights'] == {'type': 'int8'}
  assert 'weights in 8 bits' in capsys.readouterr().out
  (output,) = call(
    'generate',
    ['runs/generate.gin', policy],
    MODEL_DIR=calibrated['MODEL_DIR'],
    CERTIFICATE=path,
    INPUTS='one two',
  )
  assert output.certified

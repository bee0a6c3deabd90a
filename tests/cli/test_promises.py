"""Several promises through the jobs: certified, evaluated, validated, shown."""

import pathlib

import pytest
from fakes.counting_task import bindings_of

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')
pytest.importorskip('matplotlib')

from cases.job_cases import calibrate_again, call

from calm_jax import calibration, records, reporting
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import export, report, validate

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

PROMISES = (('textual', 0.9), ('signed', 0.5))


@pytest.fixture(scope='module')
def folder(calibrated, tmp_path_factory):
  """A joint calibration of the run, and where it was written."""
  folder = tmp_path_factory.mktemp('joint')
  calibrate_again(calibrated, folder, PROMISES=PROMISES, FULL_GRID=True)
  return folder


def test_a_joint_certificate_goes_through_evaluation_and_report(
  calibrated, folder, tmp_path, capsys
):
  certificate = Certificate.load(folder / 'certificate.json')
  assert [bound.loss for bound in certificate.promises] == ['textual', 'signed']
  assert certificate.p_value.startswith('betting')
  result = call(
    'evaluate',
    ['runs/evaluate.gin', 'policies/softmax_margin.gin', calibrated['task']],
    **bindings_of(calibrated),
    CERTIFICATE=str(folder / 'certificate.json'),
    OUTPUT_DIR=str(tmp_path),
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.ComparisonPlan.sweep_thresholds': (),
      'evaluation.ComparisonPlan.timing_batch_sizes': (),
    },
  )
  early = next(row for row in result.rows if row.kind == 'certified')
  textual, signed = result.promises
  assert (textual.mean, signed.mean) == (
    early.textual_consistency,
    early.risk_consistency,
  )
  said = capsys.readouterr().out
  assert '2 losses that were promised together came out' in said
  assert 'All of them hold here.' in said
  read = records.read_record(tmp_path / 'result.json', records.EvaluationResult)
  assert read.promises == result.promises
  path = report.run(
    calibrated['MODEL_DIR'],
    evaluation=str(tmp_path / 'result.json'),
    output=str(tmp_path / 'page.html'),
  )
  page = pathlib.Path(path).read_text(encoding='utf-8')
  assert 'textual tolerance 0.9, signed tolerance 0.5' in page
  assert 'gains on some inputs offset losses on others' in page


def test_a_manifest_has_all_promises(folder):
  certificate = Certificate.load(folder / 'certificate.json')
  stated = export._stated(certificate)
  assert [(one['loss'], one['tolerance']) for one in stated['promises']] == [
    *PROMISES
  ]
  assert 'keep all of 2 promises' in stated['statement']


def test_draws_that_break_any_promise_are_counted(folder, tmp_path, capsys):
  table = str(folder / 'loss_table.npz')
  plan = calibration.ValidationPlan(
    promises=(PROMISES, (('signed', 0.4),)), num_draws=30, curve_points=0
  )
  found = validate.run([table], plan, output_dir=str(tmp_path))
  (one,) = found.tables
  assert one.loss == 'textual and signed' and one.splits == ()
  assert [len(count.promises) for count in one.counts] == [2, 1]
  assert [len(summary.losses) for summary in one.certificates] == [2, 1]
  assert reporting.is_joint(found)
  text = (tmp_path / 'validation.md').read_text(encoding='utf-8')
  assert 'textual 0.9, signed 0.5' in text and 'offset losses' in text
  assert 'draws break any of it' in capsys.readouterr().out
  for changes, message in (
    ({}, 'holds the losses textual, signed; say what is'),
    ({'promises': ((('risk', 0.1),),)}, r'has 0 losses risk; it holds'),
    ({'promises': ((('signed', 2.0),),)}, r'signed loss: tolerance 2\.0'),
    (
      {'promises': ((('signed', 0.2), ('signed', 0.1)),)},
      'promised twice',
    ),
  ):
    with pytest.raises(ValueError, match=message):
      validate.run([table], calibration.ValidationPlan(**changes))


@pytest.mark.parametrize('text', ['textual', 'textual=', '=0.1', 'signed=x'])
def test_promises_of_a_flag_that_are_none_are_refused(text):
  with pytest.raises(ValueError, match=r'write for example --promises='):
    validate._promises([text])


def test_promises_and_a_loss_besides_are_refused(calibrated, tmp_path):
  with pytest.raises(ValueError, match='leave these two'):
    calibrate_again(calibrated, tmp_path, PROMISES=PROMISES, LOSS='risk')

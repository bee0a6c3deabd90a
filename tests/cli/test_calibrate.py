"""The calibrate job: the certificate of a run, and what is decoded for it."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from fakes.counting_task import bindings_of

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases import text_cases
from cases.job_cases import calibrate_again, call

from calm_jax import decoding, evaluation, records, runs
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import jobs


def test_calibration_writes_a_certificate_for_this_run(calibrated):
  path = pathlib.Path(calibrated['MODEL_DIR']) / 'calibration'
  certificate = Certificate.load(path / 'certificate.json')
  assert certificate.num_examples > 50
  assert certificate.context['loss'] == 'textual'
  table = records.read_loss_table(path / 'loss_table.npz')
  assert table.num_examples == certificate.num_examples
  # N of Eq. 5 is the length of outputs, which the policy's file leaves open.
  threshold = certificate.context['policy']['exit_rule']['threshold']
  assert threshold['max_length'] == certificate.context['max_length']
  # Which inputs it was made of is in both.
  assert certificate.context['examples'] == table.fingerprint['examples']
  # What seqio's Evaluator logged is what the certificate says.
  (log,) = path.rglob('*-metrics.jsonl')
  logged = json.loads(log.read_text(encoding='utf-8').splitlines()[-1])
  assert logged['threshold'] == certificate.threshold


def test_the_settings_of_a_grid_are_timed(calibrated):
  folder = pathlib.Path(calibrated['MODEL_DIR']) / 'calibration'
  table = records.read_loss_table(folder / 'loss_table.npz')
  speeds = records.find_setting_speeds(
    folder / 'loss_table.npz', table.settings, table.fingerprint
  )
  assert speeds.settings == (0.8, 0.4)
  assert speeds.full.mean_exit_layer == 3.0
  for row, speed_up in zip(speeds.timings, speeds.speed_ups, strict=True):
    assert (row.batch_size, row.num_batches) == (1, 1)
    expected = speeds.full.milliseconds_per_step / row.milliseconds_per_step
    assert speed_up == pytest.approx(expected)
  with pytest.raises(ValueError, match='other settings than'):
    records.find_setting_speeds(
      folder / 'loss_table.npz', (0.8, 0.5), table.fingerprint
    )


@pytest.mark.slow
def test_a_full_grid_changes_no_certificate(calibrated, tmp_path):
  lazy = Certificate.load(
    pathlib.Path(calibrated['MODEL_DIR']) / 'calibration/certificate.json'
  )
  certificate = calibrate_again(
    calibrated, tmp_path, TOLERANCE=0.3, FULL_GRID=True
  )
  assert (certificate.index, certificate.p_values[0]) == (
    lazy.index,
    lazy.p_values[0],
  )
  assert records.read_loss_table(tmp_path / 'loss_table.npz').computed.all()


@pytest.mark.slow
def test_another_loss_decodes_nothing_again(
  calibrated, tmp_path, monkeypatch, capsys
):
  calibrate_again(calibrated, tmp_path, TOLERANCE=0.3, FULL_GRID=True)

  def refuse(*arguments, **keywords):
    raise AssertionError('decoded again')

  monkeypatch.setattr(decoding, 'generate', refuse)
  for loss in ('risk', 'signed'):
    certificate = calibrate_again(
      calibrated, tmp_path / loss, LOSS=loss, TOLERANCE=0.2, FULL_GRID=True
    )
    assert certificate.context['loss'] == loss
    assert certificate.p_value.startswith('betting')
    cost = records.read_record(
      tmp_path / loss / 'cost.json', records.CalibrationCost
    )
    assert cost.full_seconds > 0 and cost.ratio > 1
    assert 'full-model passes' in capsys.readouterr().out
  assert certificate.loss_range == (-1, 1)


def test_data_are_decoded_by_the_rules_of_the_run(tmp_path, capsys):
  run = dataclasses.replace(
    runs.load_run(text_cases.save_run(tmp_path)),
    suppressed_tokens=(5, 9),
    forced_prefix=(77,),
  )
  decode = jobs.dataset_decoder(
    run, evaluation.BatchLayout(), model_dir=str(tmp_path)
  )
  assert decode.suppressed_tokens == (5, 9)
  context = decode.context(decoding.ComputePolicy())
  assert context.suppressed_tokens == (5, 9)
  said = capsys.readouterr().out
  assert 'tokens [77]' in said and 'no certificate covers those' in said


@pytest.mark.slow
def test_a_killed_calibration_decodes_nothing_twice(
  trained, tmp_path, monkeypatch
):
  shutil.copytree(trained['MODEL_DIR'], tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / jobs.DECODES, ignore_errors=True)
  files = {**trained, 'MODEL_DIR': str(tmp_path / 'run')}
  generate = decoding.generate
  calls = []

  def killed(*arguments, **keywords):
    if len(calls) == 4:
      raise KeyboardInterrupt
    calls.append(1)
    return generate(*arguments, **keywords)

  arguments = dict(TOLERANCE=0.3, FULL_GRID=True)
  monkeypatch.setattr(decoding, 'generate', killed)
  with pytest.raises(KeyboardInterrupt):
    calibrate_again(files, tmp_path / 'resumed', **arguments)
  before = len(calls)

  def counted(*arguments, **keywords):
    calls.append(1)
    return generate(*arguments, **keywords)

  monkeypatch.setattr(decoding, 'generate', counted)
  resumed = calibrate_again(files, tmp_path / 'resumed', **arguments)
  assert before == 4 < len(calls)
  whole = calibrate_again(files, tmp_path / 'whole', **arguments)
  assert resumed.p_values == whole.p_values
  again = len(calls)
  shutil.rmtree(tmp_path / 'run' / jobs.DECODES)
  uninterrupted = calibrate_again(files, tmp_path / 'anew', **arguments)
  assert uninterrupted.p_values == resumed.p_values
  assert len(calls) - again == again, 'as many decodes in two goes as in one'


def test_rows_that_were_trained_on_are_refused(trained, tmp_path):
  """Calibrating on other files, whose test rows were training rows here."""
  source = pathlib.Path(trained['DATA_DIR'])
  rows = list(records.read_jsonl(source / 'train.jsonl'))
  records.write_jsonl(tmp_path / 'train.jsonl', rows[:10])
  records.write_jsonl(tmp_path / 'validation.jsonl', rows[10:20])
  records.write_jsonl(tmp_path / 'test.jsonl', rows[20:60])
  elsewhere = {**trained, 'DATA_DIR': str(tmp_path)}
  with pytest.raises(ValueError, match='trained on'):
    call(
      'calibrate',
      ['runs/calibrate.gin', 'policies/softmax_margin.gin', trained['task']],
      **bindings_of(elsewhere),
      **{
        'tasks.JsonlTask.name': 'counting_elsewhere',
        'calibrate.run.output_dir': str(tmp_path / 'calibration'),
      },
    )


def test_a_task_with_another_prefix_is_refused(calibrated):
  with pytest.raises(ValueError, match="prefix 'count: '"):
    call(
      'calibrate',
      ['runs/calibrate.gin', 'policies/softmax_margin.gin', calibrated['task']],
      **bindings_of(calibrated),
      **{
        'tasks.JsonlTask.prefix': 'count: ',
        'tasks.JsonlTask.name': 'counting_with_prefix',
      },
    )


@pytest.mark.slow
def test_other_calibrations_of_the_rows_are_stated_and_counted(
  calibrated, tmp_path
):
  folder = pathlib.Path(calibrated['MODEL_DIR'])
  files = {**calibrated, 'MODEL_DIR': str(tmp_path / 'run')}
  shutil.copytree(folder, tmp_path / 'run')
  uses = tmp_path / 'run' / records.ROW_USES_NAME
  for path in uses.glob('*.json'):
    path.unlink()
  first = Certificate.load(folder / 'calibration' / 'certificate.json')
  assert 'No other use of its rows was noted' in first.describe()
  options = dict(LOSS='signed', FULL_GRID=True, SPENT='counted')
  calibrate_again(files, tmp_path / '1', TOLERANCE=0.3, ERROR_RATE=0.02)
  second = calibrate_again(files, tmp_path / '2', TOLERANCE=0.2, **options)
  assert second.error_rate == pytest.approx(0.03)
  assert '1 other calibration had looked' in second.describe()
  with pytest.raises(ValueError, match='nothing is left of the error rate'):
    calibrate_again(files, tmp_path / '3', TOLERANCE=0.25, **options)
  assert not (tmp_path / '3' / 'certificate.json').exists()
  assert len(list(uses.glob('*.json'))) == 2


@pytest.mark.slow
def test_inputs_that_are_cut_alike_are_one(
  calibrated, tmp_path, monkeypatch, capsys
):
  """Of three words the model reads one; the test split has others left."""
  load = jobs.load_run
  short = {'inputs': 2, 'targets': 12}

  def shorter(*arguments, **keywords):
    loaded = load(*arguments, **keywords)
    return dataclasses.replace(loaded, feature_lengths=short)

  monkeypatch.setattr(jobs, 'load_run', shorter)
  certificate = calibrate_again(calibrated, tmp_path, TOLERANCE=0.9)
  words = certificate.num_examples
  assert 5 <= words <= 12
  line = 'inputs are the same as an earlier one, as the model reads them'
  said = capsys.readouterr().out
  assert f' of 122 {line} (at most 2 tokens)' in said
  assert said.index(line) < said.index('full model on')
  table = records.read_loss_table(tmp_path / 'loss_table.npz')
  assert table.num_examples == len(set(table.example_ids)) == words
  (log,) = tmp_path.rglob('*-metrics.jsonl')
  logged = json.loads(log.read_text(encoding='utf-8').splitlines()[-1])
  assert logged['num_examples'] == words
  with pytest.raises(ValueError, match='138 of 138 inputs were calibrated on'):
    call(
      'evaluate',
      ['runs/evaluate.gin', 'policies/softmax_margin.gin', calibrated['task']],
      **bindings_of(calibrated),
      CERTIFICATE=str(tmp_path / 'certificate.json'),
      OUTPUT_DIR=str(tmp_path / 'evaluation'),
    )

"""Rows of `generate` watched: each once, in order, and what is no such row."""

import json

import numpy as np
import pytest
from cases import text_cases
from tools.mains import run_main

from calm_jax import calibration, records, runs
from calm_jax.calibration import bounds
from calm_jax.cli import generate, monitor
from calm_jax.pipeline.files import LineOptions, TextFiles


@pytest.fixture
def certificate(tmp_path):
  found = calibration.calibrate_jointly(
    [np.zeros((200, 1))],
    [0.5],
    promises=[
      bounds.Bound(loss='textual', metric='rouge_l', tolerance=0.1),
    ],
  )
  found.save(tmp_path / 'certificate.json')
  return found


@pytest.fixture
def path(certificate, tmp_path):
  return str(tmp_path / 'certificate.json')


def rows_of(made_under, losses, **changes):
  """Returns rows as text; None is one that was not audited."""
  rows = []
  for number, loss in enumerate(losses, 1):
    row = {'line': number, 'inputs': f'text {number}', 'text': 'out'}
    if loss is not None:
      audit = {
        'certificate': made_under.fingerprint,
        'loss': 'textual',
        'metric': 'rouge_l',
        'value': loss,
        'full_text': 'out',
        **changes,
      }
      row['audited'] = audit
    rows.append(json.dumps(row) + '\n')
  return ''.join(rows)


def state_of(path):
  return records.read_record(
    path.replace('certificate.json', 'monitor.json'), records.MonitorState
  )


def test_rows_are_read_once_and_on(certificate, path, tmp_path, capsys):
  first, second = tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'
  whole = rows_of(certificate, [None, 0.1, None, 0.0, 0.2])
  cut = whole.index('"line": 4') + 5
  first.write_text(whole[:cut])
  second.write_text(rows_of(certificate, [0.3, None]))
  assert not monitor.run(path, rows=[str(first), str(second)])
  printed = capsys.readouterr().out
  assert 'a.jsonl: 3 new rows, 1 of them audited; its last line' in printed
  assert 'audited: 2 of 5 requests' in printed and 'alarm: no' in printed
  # The job went on, and everything is given again.
  first.write_text(whole)
  assert not monitor.run(path, rows=[str(first), str(second)])
  printed = capsys.readouterr().out
  assert 'a.jsonl: 2 new rows, 2 of them audited\n' in printed
  assert 'b.jsonl: 0 new rows, 0 of them audited\n' in printed
  watch = state_of(path).watch
  assert watch.count == 4 and watch.total == pytest.approx(0.6)
  before = state_of(path)
  part = tmp_path / 'part.jsonl'
  part.write_text(whole[:cut])
  with pytest.raises(ValueError, match=r'part.* is the beginning of .*a\.json'):
    monitor.run(path, rows=[str(part)])
  first.write_text(whole.replace('text 1', 'text 0'))
  with pytest.raises(ValueError, match='no longer begins with the 5 rows'):
    monitor.run(path, rows=[str(first)])
  copy = tmp_path / 'copy.jsonl'
  copy.write_text(whole + whole)
  with pytest.raises(ValueError, match='begins with the 5 rows that were read'):
    monitor.run(path, rows=[str(copy)])
  assert state_of(path) == before


@pytest.mark.slow
def test_an_alarm_ends_in_its_own_code_until_it_is_reset(
  certificate, path, tmp_path
):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(rows_of(certificate, [None] * 3 + [0.9] * 8))
  flags = (f'--certificate={path}', f'--rows={rows}')
  result = run_main('monitor', *flags)
  assert result.returncode == monitor.ALARM == 3, result.stderr
  assert 'alarm: YES' in result.stdout
  assert not list(tmp_path.glob('*.lock'))
  alarm = state_of(path).alarm
  assert alarm.served == alarm.audited + 3
  assert run_main('monitor', f'--certificate={path}').returncode == 3
  result = run_main('monitor', f'--certificate={path}', '--reset')
  assert result.returncode == 0 and 'alarm: no' in result.stdout
  assert 'earlier alarm: raised' in result.stdout
  result = run_main('monitor', f'--certificate={path}', '--reset')
  assert result.returncode == 1 and 'no alarm to reset' in result.stderr


@pytest.mark.parametrize(
  'flags, message',
  [
    ((), 'give --model_dir=DIR, or --certificate=FILE'),
    (('--model_dir=/nowhere',), 'there is no certificate /nowhere/calibration'),
    (('--certificate=CERTIFICATE', '--false_alarms=2'), r'must be in (0, 1)'),
    (('--certificate=CERTIFICATE', '--rows=/no.jsonl'), '/no.jsonl'),
    (('--certificate=CERTIFICATE', '--metric=chrf'), 'by rouge_l, not by chrf'),
  ],
)
def test_what_cannot_be_read_ends_in_one_line(path, flags, message):
  flags = [flag.replace('CERTIFICATE', path) for flag in flags]
  result = run_main('monitor', *flags)
  assert result.returncode == 1
  assert message in result.stderr + result.stdout
  assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"precious": 1}\n', 'rows.jsonl line 1 is no row'),
    ('[]\n', 'rows.jsonl line 1 is no row'),
    ('\n', 'rows.jsonl line 1 is no row'),
    ('\xff\n', 'rows.jsonl line 1 is no row'),
    ('{"line": 1, "inputs": "a", "audited": 3}\n', 'line 1: audited is 3'),
    (dict(value=1.5), r'line 1: loss 1.5 is outside \[0, 1\]'),
    (dict(value=True), 'line 1 has a loss of True: no number'),
    (dict(value=None), 'line 1 has a loss of None: no number'),
    (dict(value='0'), "line 1: audited.value is '0'"),
    (dict(metric='chrf'), 'loss by chrf, and the textual loss by rouge_l is'),
    (dict(certificate='sha256:0'), 'line 1 was decoded under another cert'),
  ],
  ids=str,
)
def test_bad_rows_are_named_and_change_nothing(
  certificate, path, tmp_path, text, message
):
  rows = tmp_path / 'rows.jsonl'
  if isinstance(text, dict):
    text = rows_of(certificate, [0.5], **text)
  rows.write_bytes(text.encode('latin-1'))
  with pytest.raises(ValueError, match=message):
    monitor.run(path, rows=[str(rows)])
  assert not (tmp_path / 'monitor.json').exists()
  assert not list(tmp_path.glob('*.lock'))


@pytest.mark.slow
def test_audits_of_a_job_raise_an_alarm_and_the_next_one_goes_to_the_end(
  tmp_path, capsys
):
  """A random model, whose early outputs have little to do with its full ones,
  under a certificate that is not its own."""
  run_dir = text_cases.save_certified_run(
    tmp_path / 'run', loss='textual', metric='exact_match'
  )
  path = runs.certificate_path(run_dir)
  source, output = tmp_path / 'texts.txt', tmp_path / 'rows.jsonl'
  source.write_text(''.join(f'text {number:02}\n' for number in range(16)))

  def decode(output, **options):
    generate.run(
      model_dir=run_dir,
      policy=text_cases.POLICY,
      files=TextFiles(input_file=str(source), output_file=str(output)),
      options=LineOptions(batch_size=4, **options),
    )
    with open(output, encoding='utf-8') as file:
      return [json.loads(line) for line in file]

  rows = decode(output, audit=0.6)
  audited = [row for row in rows if 'audited' in row]
  assert 0 < len(audited) < len(rows)
  for row in audited:
    same = row['text'].strip() == row['audited']['full_text'].strip()
    assert row['audited']['value'] == float(not same)
  with pytest.raises(
    ValueError, match="made otherwise: audit .*'fraction': 0.6"
  ):
    decode(output, audit=0.5)
  assert monitor.run(path, rows=[str(output)])
  capsys.readouterr()
  full = decode(tmp_path / 'full.jsonl', audit=0.6)
  told = capsys.readouterr().err
  assert told.count('alarm: YES') == 1 and '--reset' in told
  assert not any('audited' in row for row in full)
  by_line = {row['line']: row['text'] for row in full}
  for row in audited:
    assert by_line[row['line']] == row['audited']['full_text']
  with pytest.raises(ValueError, match='AUDIT writes audits into rows'):
    generate.run(
      model_dir=run_dir,
      policy=text_cases.POLICY,
      files=TextFiles(inputs=['text']),
      options=LineOptions(audit=0.5),
    )
  with pytest.raises(ValueError, match='fraction of audited requests is 0'):
    LineOptions(audit=0)

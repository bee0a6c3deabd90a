"""The table of results: one row per promise, the faster fill of each."""

import dataclasses
import math

import pytest

from calm_jax import records
from calm_jax.benchmarks import certified_table, measured_rows, results_table


def row(name, speed_up, **fields):
  given = dict(
    threshold=math.nan,
    batch_size=1,
    depth_loop='unrolled',
    mean_exit_layer=4.0,
    milliseconds_per_step=1.0,
    ceiling=2.0,
    of_bound=1.5,
    shares=None,
    same_tokens=0.75,
  )
  return certified_table.CertifiedRow(
    name=name, speed_up=speed_up, **(given | fields)
  )


def certified(name, speed_up, threshold, tolerance, loss='textual'):
  return row(
    name,
    speed_up,
    threshold=threshold,
    tolerance=tolerance,
    error_rate=0.05,
    loss=loss,
  )


@pytest.fixture
def measured():
  rows = (
    row('full model', 1.0, mean_exit_layer=8.0, same_tokens=1.0),
    certified('Margin', 1.5, 0.7, 0.1),
    certified('Margin, deferred fill', 1.25, 0.7, 0.1),
    certified('Margin at 0.2', 1.75, 0.2, 0.25, 'risk'),
    certified('Margin at 0.2, deferred fill', 2.0, 0.2, 0.25, 'risk'),
    row('Another program', 0.5, mean_exit_layer=8.0),
  )
  flags = {'batch_sizes': '1', 'num_inputs': 8, 'num_repeats': 3}
  context = records.RunContext(
    'cpu', 'float32', machine='2 cores', details={'flags': flags}
  )
  return measured_rows.Measured(rows, context)


def test_of_each_certificate_the_faster_fill_is_shown(measured):
  table = results_table.table({'tiny': measured})
  assert [cells[1:5] for cells in table.rows] == [
    ('full model', '-', '8.00 of 8', '1.00x'),
    (
      'Margin, threshold 0.7',
      'mean distance to the full model at most 0.1 with probability 0.95',
      '4.00 of 8',
      '1.50x',
    ),
    (
      'Margin, deferred fill, threshold 0.2',
      'mean quality lost to the full model (gains not counted) at most 0.25 '
      'with probability 0.95',
      '4.00 of 8',
      '2.00x',
    ),
    ('Another program', '-', '8.00 of 8', '0.50x'),
  ]
  assert {cells[0] for cells in table.rows} == {'tiny'}
  assert any('8 inputs at batch 1, on cpu' in note for note in table.notes)


def test_several_promises_of_a_certificate_are_all_shown(measured, tmp_path):
  promises = tuple(
    records.PromisedLoss(loss=loss, metric='rouge_l', tolerance=tolerance)
    for loss, tolerance in (('textual', 0.1), ('signed', 0.02))
  )
  one = dataclasses.replace(measured.rows[1], promises=promises)
  assert certified_table.promise(one) == (
    'mean distance to the full model at most 0.1 and mean quality lost to the '
    'full model (gains offset losses) at most 0.02 with probability 0.95'
  )
  names = map(certified_table.name_with_tolerance, (*measured.rows[:2], one))
  assert list(names) == [
    'full model',
    'Margin, tolerance 0.1',
    'Margin, tolerances textual 0.1 and signed 0.02',
  ]
  path = str(tmp_path / 'rows.json')
  measured = dataclasses.replace(measured, rows=(one,))
  measured_rows.publish(measured, certified_table.table, path)
  read = measured_rows.read(path, certified_table.CertifiedRow)
  assert read.rows[0].promises == promises


def test_rows_survive_their_file(measured, tmp_path, capsys):
  path = str(tmp_path / 'rows.json')
  measured_rows.publish(measured, certified_table.table, path)
  assert '| Margin, deferred fill | 0.7 | 1 |' in capsys.readouterr().out
  read = measured_rows.read(path, certified_table.CertifiedRow)
  assert read.context == measured.context
  assert read.rows[1] == measured.rows[1]
  assert math.isnan(read.rows[0].tolerance)
  records.write_json(path, {'rows': [{'name': 'x'}], 'context': read.context})
  with pytest.raises(ValueError, match=r'rows.json.rows\[0\] has no'):
    measured_rows.read(path, certified_table.CertifiedRow)

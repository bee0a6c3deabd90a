"""The benchmark of an encoder's exits: its flags and its table."""

import dataclasses
import math

import numpy as np
import pytest

from calm_jax import records, reporting
from calm_jax.benchmarks import (
  encoder_exits,
  encoder_exits_table,
  measured_rows,
)


def test_flags_that_measure_nothing_end_in_one_line():
  for given, message in (
    ([], 'give --run_dir and --tokens'),
    (['--batch_sizes=0'], 'batch_sizes 0 must be a whole number in 1..64'),
    (['--num_repeats=0'], 'num_repeats 0'),
    (['--max_inputs=0'], 'max_inputs 0 must be a whole number at least 1'),
    (['--tolerances=0.1'], 'tolerances are certified on --calibration'),
    (['--show=a.json', '--output=b.json'], '--show measures nothing'),
  ):
    paths = ['--run_dir=nowhere', '--tokens=nothing.npz'] if given else []
    with pytest.raises(SystemExit, match=f'encoder_exits: {message}'):
      encoder_exits.main([*paths, *given])


FULL = records.EncoderExitRow(
  run='toy',
  rule='full encoder',
  setting='-',
  accuracy=0.5,
  agreement=1.0,
  mean_layers=4.0,
  milliseconds=(4.0,),
  loops=('UnrolledLayers',),
)


def row(rule, milliseconds=math.nan, **changes):
  return dataclasses.replace(
    FULL,
    **{
      'rule': rule,
      'setting': 'threshold 0.9',
      'mean_layers': 2.0,
      'milliseconds': (milliseconds,),
      **changes,
    },
  )


def measured(*rows, sizes=(1,)):
  details = {'num_inputs': 10, 'num_classes': 3, 'num_layers': 4}
  return measured_rows.Measured(
    rows,
    records.RunContext(
      device='toy',
      dtype='float32',
      details={'flags': {'batch_sizes': list(sizes)}, **details},
    ),
  )


def seed(shift, **changes):
  """A file of one seed: two rules at settings, one of them certified."""
  return measured(
    FULL,
    row('margin', accuracy=0.5 + shift, mean_layers=2.0 + shift),
    row('patience', setting='patience 2'),
    row(
      'certified: textual 0.05',
      2.0,
      method='margin',
      setting=f'threshold {0.8 + shift:g}',
      accuracy=0.5 + shift,
      agreement=0.97,
    ),
    row(
      'certified: textual 0.05',
      method='patience',
      setting=records.NOTHING,
      mean_layers=4.0,
    ),
    **changes,
  )


def test_speed_ups_are_over_the_first_row():
  table = encoder_exits_table.table(
    measured(FULL, row('a', 1.0), row('b', math.nan))
  )
  assert [line[-1] for line in table.rows] == [
    '4.00 (1.00x)',
    '1.00 (4.00x)',
    '-',
  ]
  assert table.rows[0][3:6] == ('50.0', '100.0', '4.00')


def test_files_of_several_seeds_come_together():
  untimed = measured(
    *(dataclasses.replace(one, milliseconds=()) for one in seed(0.1).rows),
    sizes=(),
  )
  table = encoder_exits_table.table(seed(0.0), untimed)
  assert [line[1:] for line in table.rows] == [
    (
      'full encoder',
      '-',
      '50.0 ± 0.0',
      '100.0 ± 0.0',
      '4.00 ± 0.00',
      '4.00 (1.00x)',
    ),
    (
      'certified: textual 0.05',
      'margin: threshold 0.8; threshold 0.9',
      '55.0 ± 5.0',
      '97.0 ± 0.0',
      '2.00 ± 0.00',
      '2.00 (2.00x)',
    ),
    (
      'certified: textual 0.05',
      f'patience: {records.NOTHING}',
      '50.0 ± 0.0',
      '100.0 ± 0.0',
      '4.00 ± 0.00',
      '-',
    ),
  ]
  assert '2 trainings with other seeds' in table.notes[1]
  every = encoder_exits_table.table(seed(0.0), untimed, every=True)
  assert [line[1] for line in every.rows][1:3] == ['margin', 'patience']
  assert every.rows[1][5] == '2.05 ± 0.05'


def test_files_are_shown_and_drawn(tmp_path, capsys):
  paths = [tmp_path / f'{number}.json' for number in range(2)]
  for path, shift in zip(paths, (0.0, 0.1), strict=True):
    records.write_json(path, seed(shift))
  shown = f'--show={",".join(map(str, paths))}'
  picture = tmp_path / 'exits.png'
  pytest.importorskip('matplotlib')
  encoder_exits.main([shown, f'--picture={picture}'])
  assert 'margin: threshold 0.8; threshold 0.9' in capsys.readouterr().out
  assert picture.stat().st_size > 1000
  rows = [one for path in (0.0, 0.1) for one in seed(path).rows]
  upper, lower = reporting.encoder_exit_figure(rows).axes
  margin = next(line for line in upper.lines if line.get_marker() == 'o')
  assert margin.get_xdata() == pytest.approx([2.05])
  assert margin.get_ydata() == pytest.approx([55.0])
  # What certifies nothing has no star.
  (stars,) = lower.collections
  assert [*np.asarray(stars.get_offsets()).flat] == pytest.approx([2.0, 3.0])
  with pytest.raises(ValueError, match='nothing to draw'):
    reporting.encoder_exit_figure([FULL])

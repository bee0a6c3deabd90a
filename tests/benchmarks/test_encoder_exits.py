"""The benchmark of an encoder's exits: its flags and its table."""

import math
import types

import pytest

from calm_jax.benchmarks import encoder_exits, encoder_exits_table
from calm_jax.benchmarks.encoder_exits_table import EncoderExitRow


def test_flags_that_measure_nothing_end_in_one_line():
  for given, message in (
    ([], 'give --run_dir and --tokens'),
    (['--batch_sizes=0'], 'batch_sizes 0 must be a whole number in 1..64'),
    (['--num_repeats=0'], 'num_repeats 0'),
  ):
    paths = ['--run_dir=nowhere', '--tokens=nothing.npz'] if given else []
    with pytest.raises(SystemExit, match=f'encoder_exits: {message}'):
      encoder_exits.main([*paths, *given])


def test_speed_ups_are_over_the_first_row():
  def row(rule, milliseconds):
    return EncoderExitRow(
      run='toy',
      rule=rule,
      setting='0.9',
      accuracy=0.5,
      agreement=1.0,
      mean_layers=2.0,
      milliseconds=(milliseconds,),
      loops=('UnrolledLayers',),
    )

  details = {'num_inputs': 10, 'num_classes': 3, 'num_layers': 4}
  measured = types.SimpleNamespace(
    rows=(row('full encoder', 4.0), row('a', 1.0), row('b', math.nan)),
    flags={'batch_sizes': [1]},
    context=types.SimpleNamespace(details=details),
    machine='here',
  )
  table = encoder_exits_table.table(measured)
  assert [row[-1] for row in table.rows] == [
    '4.00 (1.00x)',
    '1.00 (4.00x)',
    '-',
  ]
  assert table.rows[0][3:6] == ('50.0', '100.0', '2.00')

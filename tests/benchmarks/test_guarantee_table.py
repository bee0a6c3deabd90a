"""The table of validations: a line per measure and test, a column per loss."""

import numpy as np
import pytest
from cases import validation_cases

from calm_jax import records
from calm_jax.benchmarks import guarantee_table
from calm_jax.reporting import tables

pytest.importorskip('matplotlib')
P_VALUES = ('hoeffding_bentkus', 'betting')


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """Validations of textual losses of two measures, and of signed losses."""
  folder = tmp_path_factory.mktemp('guarantee')
  quick = dict(p_values=P_VALUES, curve_points=0, num_draws=20, num_splits=2)
  validation_cases.validation(folder / 'textual', **quick)
  signed = validation_cases.loss_table(
    losses=validation_cases.losses(largest=0.5) / 4 - 0.01, loss='signed'
  )
  signed.fingerprint['loss_range'] = [-1.0, 1.0]
  validation_cases.validation(
    folder / 'signed',
    signed,
    speed_ups=np.arange(1.0, 6.0),
    tolerances=(0.05,),
    **quick,
  )
  return [
    str(folder / loss / 'run_0' / 'validation.json')
    for loss in ('textual', 'signed')
  ]


def test_signed_columns_stand_beside_textual_ones(paths, tmp_path, capsys):
  output = tmp_path / 'table.json'
  guarantee_table.main(
    [
      f'--validations=words={paths[0]},words={paths[1]}',
      '--measured=here',
      f'--output={output}',
    ]
  )
  read = records.read_record(output, tables.Table)
  assert read.header == (
    'data set, measure',
    'p-value',
    'textual 0.1',
    'textual 0.25',
    'signed 0.05',
  )
  assert [row[:2] for row in read.rows] == [
    (f'words, {measure}', p_value)
    for measure in ('softmax margin', 'state similarity')
    for p_value in P_VALUES
  ]
  # Signed losses were measured of the margin alone, and betting needs less.
  hoeffding, betting, *others = read.rows
  assert hoeffding[4].startswith('nothing, ')
  validation = records.read_record(paths[1], records.Validation)
  (one,) = validation.tables
  certificate, count = one.certificates[1], one.counts[1]
  place = one.settings.index(certificate.setting)
  assert betting[4] == (
    f'{certificate.setting:g}: {one.mean_exit_layers[place]:.2f}, '
    f'{one.speeds.speed_ups[place]:.2f}x, {100 * count.rate:.1f} %'
  )
  assert {row[4] for row in others} == {'-'}
  assert tables.as_markdown(read) in capsys.readouterr().out
  assert records.read_json(output)['measured'] == 'here'


@pytest.mark.parametrize(
  ('validations', 'message'),
  [
    ('words', 'no name and file'),
    ('words={0},words={0}', 'twice'),
    ('words=/nowhere.json', 'nowhere'),
  ],
)
def test_what_cannot_be_read_is_refused(paths, validations, message):
  with pytest.raises(SystemExit, match=message):
    guarantee_table.main([f'--validations={validations.format(paths[0])}'])

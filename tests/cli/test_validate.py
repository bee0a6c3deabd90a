"""The validate command: counts on stored tables, without JAX."""

import dataclasses
import os

import numpy as np
import pytest
from cases import validation_cases
from tools import import_server

from calm_jax import calibration, records
from calm_jax.cli import validate

pytest.importorskip('matplotlib')

# Runs the job where JAX and TensorFlow cannot be imported. (Not by None in
# sys.modules, where SciPy 1.18 looks for the jax that is loaded.)
WITHOUT_JAX = """
import runpy, sys

class Missing:
  def find_spec(self, name, path=None, target=None):
    if name in ('jax', 'jaxlib', 'flax', 'tensorflow', 'seqio', 'gin'):
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Missing())
sys.argv[0] = 'validate'
runpy.run_module('calm_jax.cli.validate', run_name='__main__', alter_sys=True)
"""


# For what the counts have no part in.
LEAST = dict(curve_points=0, num_draws=2, num_splits=2, tolerances=(0.25,))


def run_main(*arguments):
  python = import_server.server(*import_server.OF_LAPTOPS)
  return python.run('-c', WITHOUT_JAX, *arguments)


@pytest.mark.slow
def test_the_job_runs_on_a_laptop_without_jax(tmp_path):
  paths = validation_cases.write_tables(
    tmp_path,
    validation_cases.loss_table(),
    validation_cases.loss_table('StateSimilarity'),
  )
  result = run_main(
    *(f'--table={path}' for path in paths),
    '--tolerance=0.1,0.25',
    '--p_value=hoeffding_bentkus,betting',
    '--draws=30',
    '--draw_size=100',
    '--splits=5',
    '--curve_points=3',
    '--curve_draws=10',
    '--seed=2',
  )
  assert result.returncode == 0, result.stderr
  folder = os.path.dirname(paths[0])
  assert {
    'validation.json',
    'validation.md',
    'violations.png',
    'risk_by_tolerance.png',
    'layers_by_tolerance.png',
  } < set(os.listdir(folder))
  read = records.read_record(
    os.path.join(folder, 'validation.json'), records.Validation
  )
  assert [table.name for table in read.tables] == [
    'SoftmaxMargin',
    'StateSimilarity',
  ]
  assert [len(table.counts) for table in read.tables] == [4, 4]
  # The risk of the first setting is 0.
  assert [len(table.near_counts) for table in read.tables] == [8, 8]
  count = read.tables[0].counts[0]
  assert (count.num_draws, count.draw_size, read.seed) == (30, 100, 2)
  assert '--draw_size=100' in read.context.command
  # Progress, what the table certifies, and where it all is.
  for text in (
    'SoftmaxMargin, the whole table: Certified: setting',
    'tolerance 0.25: 0 of 30 draws violate it',
    '3 of 3 points of the curves',
    f'written to {folder}',
  ):
    assert text in result.stdout
  markdown = (tmp_path / 'run_0' / 'validation.md').read_text('utf-8')
  assert '| SoftmaxMargin, betting(seed=0) | 0.25 |' in markdown


def test_the_record_is_what_was_counted_and_is_read_back(tmp_path):
  validation = validation_cases.validation(
    tmp_path, output_dir=str(tmp_path / 'out')
  )
  path = tmp_path / 'out' / 'validation.json'
  read = records.read_record(path, records.Validation)
  assert read == validation
  table = validation.tables[0]
  losses = validation_cases.losses()
  np.testing.assert_allclose(table.risks, losses.mean(axis=0))
  assert table.measure == 'SoftmaxMargin' and table.metric == 'rouge_l'
  assert table.num_layers == validation_cases.NUM_LAYERS
  assert [c.tolerance for c in table.counts] == [0.1, 0.25]
  assert [s.tolerance for s in table.splits] == [0.1, 0.25]
  for certificate in table.certificates:
    expected = calibration.calibrate(
      losses, validation_cases.SETTINGS, tolerance=certificate.tolerance
    )
    assert certificate.setting == expected.setting
    assert certificate.calibration_loss == expected.risks[expected.index]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_another(tmp_path):
  table = validation_cases.loss_table()

  def counts(seed):
    validation = validation_cases.validation(tmp_path, table, seed=seed)
    return dataclasses.replace(validation.tables[0], path='')

  assert counts(0) == counts(0)
  first, second = counts(0), counts(1)
  assert first.checksum == second.checksum
  assert first.counts != second.counts and first.splits != second.splits


def test_another_table_has_another_checksum(tmp_path):
  checksums = set()
  for table in (
    validation_cases.loss_table(),
    validation_cases.loss_table(losses=validation_cases.losses(seed=3)),
    validation_cases.loss_table('StateSimilarity'),
  ):
    validation = validation_cases.validation(tmp_path, table, **LEAST)
    checksums.add(validation.tables[0].checksum)
  assert len(checksums) == 3


def test_signed_losses_take_the_betting_p_value(tmp_path):
  table = validation_cases.loss_table(
    losses=validation_cases.losses() - 0.5 * validation_cases.losses(seed=9),
    loss='signed',
  )
  table.fingerprint['loss_range'] = [-1.0, 1.0]
  validation = validation_cases.validation(tmp_path, table, tolerances=(0.2,))
  (entry,) = validation.tables
  assert entry.counts[0].p_value == 'betting(seed=0)'
  assert entry.loss_range == (-1.0, 1.0)


def test_tables_of_one_measure_are_told_apart(tmp_path, capsys):
  validation = validation_cases.validation(
    tmp_path,
    validation_cases.loss_table(),
    validation_cases.loss_table(losses=validation_cases.losses(100)),
    **LEAST,
  )
  names = [table.name for table in validation.tables]
  assert names == ['SoftmaxMargin (table 1)', 'SoftmaxMargin (table 2)']
  assert 'is of other inputs' in capsys.readouterr().out


def test_tables_may_be_named(tmp_path):
  tables = (validation_cases.loss_table(), validation_cases.loss_table('Other'))
  validation = validation_cases.validation(
    tmp_path, *tables, names=['tau 0', 'tau 4'], **LEAST
  )
  assert [table.name for table in validation.tables] == ['tau 0', 'tau 4']
  assert [t.measure for t in validation.tables] == ['SoftmaxMargin', 'Other']
  for names in (['one'], ['same', 'same']):
    with pytest.raises(ValueError, match='give 2 different ones'):
      validation_cases.validation(tmp_path, *tables, names=names)


def test_older_tables_without_layers_or_range_are_read(tmp_path, capsys):
  table = validation_cases.loss_table()
  for name in ('num_layers', 'loss_range', 'policy'):
    del table.fingerprint[name]
  validation = validation_cases.validation(
    tmp_path, table, tolerances=(1e-4, 0.25)
  )
  (entry,) = validation.tables
  assert entry.name == 'loss_table' and entry.num_layers is None
  # At 1e-4 nothing is certified: the depth of the full model is needed.
  assert np.isnan(entry.counts[0].mean_exit_layer)
  assert 'does not say how many layers' in capsys.readouterr().out


def _broken(**changes):
  return lambda: validation_cases.loss_table(**changes)


def _with_fingerprint(**changes):
  table = validation_cases.loss_table()
  table.fingerprint.update(changes)
  return table


@pytest.mark.parametrize(
  ('second', 'arguments', 'message'),
  [
    (_broken(loss='risk'), {}, "has loss 'textual', .* has 'risk'"),
    (lambda: _with_fingerprint(metric='bleu'), {}, "has metric 'rouge_l'"),
    (lambda: _with_fingerprint(loss_range=[0, 2]), {}, 'has loss_range'),
    (None, {'p_values': ('bernstein',)}, r"p-values are \['bernstein'\]"),
    (None, {'p_values': ()}, 'p-values are'),
    (None, {'p_values': ('exact_binomial',)}, 'for losses of 0 and 1'),
    (None, {'procedure': 'bonferoni'}, "procedure 'bonferoni' is none"),
    (None, {'error_rate': 0.0}, 'error_rate must be in'),
    (None, {'tolerances': (1.2,)}, 'tolerance 1.2 must lie strictly'),
    (None, {'tolerances': ()}, 'tolerances are empty'),
    (None, {'num_draws': 0}, 'num_draws 0'),
    (None, {'num_splits': 0}, 'num_splits 0'),
  ],
)
def test_bad_input_is_named(tmp_path, second, arguments, message):
  tables = [validation_cases.loss_table()]
  if second is not None:
    tables.append(second())
  with pytest.raises(ValueError, match=message):
    validation_cases.validation(tmp_path, *tables, **arguments)
  assert not (tmp_path / 'run_0' / 'validation.json').exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: np.where(np.arange(5) > 2, np.nan, x), 'FULL_GRID=True'),
    (lambda x: x + 0.9, 'not within the loss_range 0 to 1'),
    (lambda x: x[:12], '12 rows cannot stand for a population'),
  ],
)
def test_tables_that_are_no_population_end_in_one_line(
  tmp_path, change, message
):
  (path,) = validation_cases.write_tables(
    tmp_path,
    validation_cases.loss_table(losses=change(validation_cases.losses())),
  )
  result = run_main(f'--table={path}')
  assert result.returncode == 1
  assert result.stderr.startswith(f'validate: {path}: ')
  assert message in result.stderr and 'Traceback' not in result.stderr


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ['--table=nowhere.npz'],
      'no loss table at nowhere.npz; calm_jax.cli.calibrate',
    ),
    (
      ['--table=x.npz', '--tolerance=0.1;0.2'],
      '--tolerance=0.1;0.2 is no list of numbers',
    ),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  result = run_main(*arguments)
  assert result.returncode == 1
  assert result.stderr.startswith('validate: ')
  assert message in result.stderr and 'Traceback' not in result.stderr


def test_a_damaged_table_is_named(tmp_path):
  (path,) = validation_cases.write_tables(
    tmp_path, validation_cases.loss_table()
  )
  with open(path, 'rb+') as file:
    file.truncate(200)
  with pytest.raises(ValueError, match='not a complete loss table'):
    validate.run([path], calibration.ValidationPlan())


def test_measured_speeds_stand_beside_depths(tmp_path, capsys):
  speed_ups = (1.1, 1.3, 1.6, 2.0, 3.0)
  validation = validation_cases.validation(
    tmp_path, speed_ups=speed_ups, tolerances=(0.25,)
  )
  timed, other = validation.tables
  assert timed.speeds.speed_ups == speed_ups
  assert other.speeds is None and other.curve.mean_speed_ups is None
  (certificate,) = timed.certificates
  chosen = speed_ups[timed.settings.index(certificate.setting)]
  assert f'{chosen:.2f}x' in capsys.readouterr().out
  curve = timed.curve.mean_speed_ups
  # The first tolerance is far below the first risk: the full model.
  assert all(1.0 <= value <= 3.0 for value in curve)
  assert list(curve) == sorted(curve)
  assert (tmp_path / 'run_0' / 'speed_by_tolerance.png').exists()
  read = records.read_record(
    tmp_path / 'run_0' / 'validation.json', records.Validation
  )
  # As texts: NaN is not equal to itself.
  assert repr(read) == repr(validation)


def test_speeds_of_another_model_are_refused(tmp_path):
  table = validation_cases.loss_table()
  (path,) = validation_cases.write_tables(tmp_path, table)
  validation_cases.write_speeds(path, (1.0,) * 5)
  table.fingerprint['parameters'] = 'sha256:other'
  with pytest.raises(ValueError, match='other parameters than'):
    validation_cases.validation(tmp_path, table)

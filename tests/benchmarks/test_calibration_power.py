"""The power table: laws of the stated risk, and figures known otherwise."""

import json

import numpy as np
import pytest

from calm_jax import calibration, records
from calm_jax.benchmarks import calibration_power, loss_laws, measured_rows


@pytest.mark.parametrize('name', loss_laws.LAWS)
@pytest.mark.parametrize('tolerance', calibration_power.TOLERANCES)
def test_laws_have_the_risk_they_are_asked_for(name, tolerance):
  law = loss_laws.LAWS[name]
  risk = tolerance * law.risk_share
  losses = law.of_risk(risk)
  assert losses.mean() == pytest.approx(risk, rel=0.01, abs=1e-12)
  low, high = law.loss_range
  assert low <= losses.min() and losses.max() <= high
  if law.binary:
    assert set(losses) <= {0.0, 1.0}
  with pytest.raises(ValueError, match=r'at most 0\.8, not 0\.9'):
    loss_laws.sparse(0.9)


def test_the_table_says_what_is_known_otherwise(tmp_path, capsys):
  path = tmp_path / 'power.json'
  calibration_power.main(
    [
      '--laws=zero,bernoulli,nearly_constant',
      '--p_values=hoeffding_bentkus,exact_binomial,betting',
      '--tolerances=0.1,0.25',
      f'--output={path}',
    ]
  )
  table = capsys.readouterr().out
  assert '| all 0 | hoeffding_bentkus | 29 | 11 |' in table
  content = json.loads(path.read_text())
  assert content['context']['details']['flags']['power'] == 0.8
  assert content['context']['versions']['scipy']
  rows = {
    (row['law'], row['p_value'], row['tolerance']): row
    for row in content['rows']
  }
  # 3 laws x 3 p-values, but no counting of losses that are not 0 or 1.
  assert len(rows) == (3 * 3 - 1) * 2
  for tolerance, number in ((0.1, 274), (0.25, 97)):
    row = rows['bernoulli', 'hoeffding_bentkus', tolerance]
    assert row['num_examples'] == number
    assert row['risk'] == tolerance / 2
    # The more is known of the losses, the fewer it takes.
    assert (
      rows['bernoulli', 'exact_binomial', tolerance]['num_examples']
      < rows['bernoulli', 'betting', tolerance]['num_examples']
      < number
    )
    calm = rows['nearly_constant', 'betting', tolerance]['num_examples']
    assert calm * 2 < number


@pytest.mark.slow
def test_too_many_examples_are_said_to_be():
  (row,) = calibration_power.measure(
    laws=['signed'], p_values=['hoeffding'], tolerances=[0.001]
  )
  assert row.num_examples is None
  context = records.RunContext(
    'cpu', 'float64', details={'flags': {'power': 0.8, 'error_rate': 0.05}}
  )
  measured = measured_rows.Measured((row,), context)
  assert calibration_power.table(measured).rows[0][-1] == 'too many'


def test_power_that_was_planned_is_there():
  """Counted on fresh draws of a law that the planner simulated."""
  (row,) = calibration_power.measure(
    laws=['sparse'], p_values=['betting'], tolerances=[0.1]
  )
  losses = loss_laws.sparse(0.05)
  samples = np.random.default_rng(99).choice(losses, (2000, row.num_examples))
  tests = calibration.betting.batch(samples, tolerance=0.1)
  # Two simulations: one of 1,000 chose the number, one of 2,000 counts here.
  assert (tests <= 0.05).mean() == pytest.approx(0.8, abs=0.06)


def test_help_teaches_and_bad_flags_are_named(capsys):
  with pytest.raises(SystemExit) as ended:
    calibration_power.main(['--help'])
  assert ended.value.code == 0
  text = capsys.readouterr().out
  assert 'python -m calm_jax.benchmarks.calibration_power' in text
  for flag in ('--tolerances', '--laws', '--p_values', '--output'):
    assert flag in text
  for flags, message in (
    (['--laws=normal'], "'normal' is none of zero, bernoulli"),
    (['--p_values=t_test'], "'t_test' is none of hoeffding"),
    (['--tolerances=1.5'], 'tolerance 1.5'),
    (['--power=80'], 'power must be in'),
    (['--error_rate=0'], 'must be in'),
  ):
    with pytest.raises(SystemExit, match=message):
      calibration_power.main(['--laws=bernoulli', *flags])

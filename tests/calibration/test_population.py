"""Violations: counted as they are, and those of a wrong p-value are found."""

import math

import numpy as np
import pytest
from cases import validation_cases
from scipy import stats

from calm_jax import calibration
from calm_jax.calibration import choices, violations
from calm_jax.calibration import population as populations

Population, Statistics = populations.Population, choices.Statistics
PROCEDURES = (
  calibration.fixed_sequence(),
  calibration.fixed_sequence(num_starts=2),
  calibration.Bonferroni(),
  calibration.Holm(),
)


def population(losses=None, **changes):
  losses = validation_cases.losses() if losses is None else losses
  fields = {
    'losses': losses,
    'settings': validation_cases.SETTINGS[: losses.shape[1]],
    'mean_exit_layers': np.linspace(5.0, 1.5, losses.shape[1]),
    'num_layers': validation_cases.NUM_LAYERS,
  }
  return Population(**{**fields, **changes})


@pytest.mark.slow
@pytest.mark.parametrize('procedure', PROCEDURES, ids=lambda p: p.name)
@pytest.mark.parametrize(
  'p_value', [calibration.hoeffding_bentkus, calibration.betting]
)
@pytest.mark.parametrize('low', [0.0, -1.0])
def test_a_draw_is_calibrated_as_calibrate_would(procedure, p_value, low):
  losses = validation_cases.losses(120)
  if low:
    losses = losses - 0.3 * validation_cases.losses(120, seed=7)
  table = population(losses, loss_range=(low, 1.0))
  rng = np.random.default_rng(3)
  rows = rng.integers(120, size=(12, 90))
  found = set()
  for tolerance in (0.04, 0.15, 0.3):
    chosen = choices.choose(
      table,
      rows,
      tolerance=tolerance,
      statistics=Statistics(0.1, p_value, procedure),
    )
    for sample, column in zip(rows, chosen, strict=True):
      certificate = calibration.calibrate(
        losses[sample],
        table.settings,
        tolerance=tolerance,
        error_rate=0.1,
        p_value=p_value,
        procedure=procedure,
        loss_range=(low, 1.0),
      )
      assert column == (-1 if certificate.index is None else certificate.index)
      found.add(int(column))
  assert len(found) > 2, 'too easy: always the same choice'


def test_only_what_the_procedure_asks_for_is_computed():
  sizes = []

  def p_value(losses, *, tolerance):
    sizes.append(len(losses))
    return calibration.hoeffding_bentkus(losses, tolerance=tolerance)

  losses = np.repeat([[0.0, 0.9, 0.0, 0.0]], 60, axis=0)
  choices.choose(
    population(losses),
    np.tile(np.arange(60), (5, 1)),
    tolerance=0.2,
    statistics=Statistics(p_value=p_value),
  )
  # Five draws, two columns each: the second fails.
  assert sizes == [60] * 10


def test_counts_are_those_of_the_choices():
  """Two settings, one of them surely fine and one as surely not."""
  losses = np.zeros((100, 2))
  losses[:30, 1] = 1.0
  count = violations.count_violations(
    population(losses, mean_exit_layers=np.array([4.0, 1.0])),
    tolerance=0.1,
    statistics=Statistics(),
    num_draws=50,
  )
  assert count.chosen == (50, 0) and count.num_violations == 0
  assert count.mean_risk == 0.0 and count.mean_exit_layer == 4.0
  # A p-value that passes everything chooses the second.
  count = violations.count_violations(
    population(losses, mean_exit_layers=np.array([4.0, 1.0])),
    tolerance=0.1,
    statistics=Statistics(p_value=lambda losses, *, tolerance: 0.0),
    num_draws=50,
  )
  assert count.chosen == (0, 50) and count.rate == 1.0
  assert count.mean_risk == pytest.approx(0.3)
  assert count.mean_exit_layer == 1.0 and count.num_certified == 50


@pytest.mark.parametrize('num_layers', [6, None])
def test_nothing_certified_is_the_full_model(num_layers):
  count = violations.count_violations(
    population(np.full((40, 2), 0.5), num_layers=num_layers),
    tolerance=0.1,
    statistics=Statistics(),
    num_draws=20,
  )
  assert count.num_certified == count.num_violations == 0
  assert count.mean_risk == 0.0
  if num_layers is None:
    assert math.isnan(count.mean_exit_layer)
  else:
    assert count.mean_exit_layer == num_layers


def test_nothing_certified_breaks_no_promise_of_a_gain():
  """At a negative tolerance the full model's loss of 0 is above it."""
  rng = np.random.default_rng(0)
  losses = rng.normal(-0.04, 0.3, (300, 2)).clip(-1, 1)
  table = population(losses, loss_range=(-1.0, 1.0))
  ((_, tolerance), *_) = violations.near_tolerances(table)
  assert tolerance < 0
  count = violations.count_violations(
    table, tolerance=tolerance, statistics=Statistics(), num_draws=200
  )
  assert count.num_certified < 40
  assert count.num_violations <= count.num_certified


def test_a_risk_at_the_tolerance_is_no_violation():
  """Whatever rounding makes of 60 losses of 0.1."""
  count = violations.count_violations(
    population(np.full((60, 1), 0.1)),
    tolerance=0.1,
    statistics=Statistics(p_value=lambda losses, *, tolerance: 0.0),
    num_draws=5,
  )
  assert count.num_certified == 5 and count.num_violations == 0


def test_draws_are_with_replacement_and_repeatable():
  (block,) = violations.draws(50, 20, 50, seed=1)
  assert block.shape == (20, 50)
  assert all(len(set(row)) < 50 for row in block.tolist())
  assert block.min() == 0 and block.max() == 49
  (again,) = violations.draws(50, 20, 50, seed=1)
  np.testing.assert_array_equal(again, block)
  (other,) = violations.draws(50, 20, 50, seed=2)
  assert (other != block).any()


def test_draws_do_not_depend_on_the_blocks(monkeypatch):
  (whole,) = violations.draws(50, 7, 40, seed=0)
  monkeypatch.setattr(violations, '_MOST_LOSSES', 100)
  blocks = list(violations.draws(50, 7, 40, seed=0))
  assert len(blocks) == 4
  np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_the_interval_is_that_of_clopper_and_pearson():
  for count, number in ((0, 10), (3, 10), (10, 10), (47, 1000)):
    low, high = violations.rate_interval(count, number)
    # By its definition: the ends at which the count is a 2.5 % surprise.
    if count:
      assert stats.binom.sf(count - 1, number, low) == pytest.approx(0.025)
    if count < number:
      assert stats.binom.cdf(count, number, high) == pytest.approx(0.025)
    assert low <= count / number <= high


@pytest.fixture(scope='module')
def binary():
  """Losses of 0 and 1, hardest for p-values of the mean: risks known."""
  rng = np.random.default_rng(5)
  risks = np.array([0.02, 0.06, 0.1, 0.16, 0.25])
  return population((rng.random((300, 1)) < risks).astype(float))


def _naive(losses, *, tolerance):
  """Takes the sample's mean for the risk: the mistake to be found."""
  return 0.0 if losses.mean() <= tolerance else 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
  'p_value',
  [
    calibration.hoeffding_bentkus,
    calibration.betting,
    calibration.exact_binomial,
  ],
)
@pytest.mark.parametrize('procedure', PROCEDURES[::3], ids=lambda p: p.name)
def test_the_violation_rate_is_at_most_the_error_rate(
  binary, p_value, procedure
):
  error_rate, num_draws = 0.1, 500
  most = error_rate + 3 * math.sqrt(error_rate * (1 - error_rate) / num_draws)
  seen = 0
  for setting, tolerance in violations.near_tolerances(binary)[1:]:
    count = violations.count_violations(
      binary,
      tolerance=tolerance,
      statistics=Statistics(error_rate, p_value, procedure),
      num_draws=num_draws,
      near_setting=setting,
    )
    assert count.rate <= most, (setting, tolerance)
    assert count.near_setting == setting
    seen += count.num_violations
  assert seen, 'a count that never finds anything says nothing'


def test_a_wrong_p_value_is_caught(binary):
  for _, tolerance in violations.near_tolerances(binary)[1:]:
    count = violations.count_violations(
      binary,
      tolerance=tolerance,
      statistics=Statistics(p_value=_naive),
      num_draws=300,
    )
    assert count.rate_low > 0.05


def test_a_wrong_procedure_is_caught():
  """Many settings of the same risk, of which the best-looking is taken."""
  rng = np.random.default_rng(0)
  table = Population(
    rng.permuted(np.arange(300)[:, np.newaxis] < [30] * 20, axis=0) * 1.0,
    [round(0.95 - 0.04 * i, 2) for i in range(20)],
    np.ones(20),
    num_layers=2,
  )

  class Uncorrected(calibration.Bonferroni):
    def level(self, num_settings, error_rate):
      return error_rate

  arguments = {'tolerance': 0.98 * float(table.risks.min()), 'num_draws': 200}
  rates = [
    violations.count_violations(
      table,
      statistics=Statistics(
        p_value=calibration.exact_binomial, procedure=procedure
      ),
      **arguments,
    )
    for procedure in (Uncorrected(), calibration.Bonferroni())
  ]
  assert rates[0].rate_low > 0.05 >= rates[1].rate_low


@pytest.mark.parametrize('loss_range', [(0.0, 1.0), (-1.0, 1.0)])
def test_near_tolerances_lie_just_below_risks(loss_range):
  losses = np.repeat([[-0.2 if loss_range[0] else 0.0, 0.1, 1.0]], 40, axis=0)
  near = violations.near_tolerances(population(losses, loss_range=loss_range))
  expected = [(0.7, 0.098)]
  if loss_range[0]:
    expected.insert(0, (0.9, -0.204))
  assert [setting for setting, _ in near] == [s for s, _ in expected]
  np.testing.assert_allclose([t for _, t in near], [t for _, t in expected])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x[:10], '10 rows cannot stand for a population'),
    (lambda x: x[:0], '0 rows cannot stand'),
    (lambda x: x + 0.5, r'the loss of row \d+, column 4 is 1\.'),
    (lambda x: -x - 0.1, 'the loss of row 0, column 0 is -0.'),
    (lambda x: x[:, :4], r'losses have shape \(200, 4\)'),
    (lambda x: x[:, 0], r'losses have shape \(200,\)'),
    (
      lambda x: np.where([False, False, False, True, True], np.nan, x),
      r'column 3 \(setting 0.3\) was not decoded, as are 2 of 5.*FULL_GRID',
    ),
    (
      lambda x: np.where(np.arange(200)[:, np.newaxis] > 63, np.nan, x),
      r'column 0 .* not decoded, as are 5 of 5, .*without AnytimeSequence',
    ),
    (
      lambda x: np.where(np.arange(200)[:, np.newaxis] == 7, np.nan, x),
      'the loss of row 7, column 0 is nan',
    ),
  ],
)
def test_what_cannot_be_a_population_is_refused(change, message):
  losses = change(validation_cases.losses())
  with pytest.raises(ValueError, match=message):
    Population(losses, validation_cases.SETTINGS, np.ones(5))


def test_bad_arguments_are_named():
  table = population()
  count = violations.count_violations
  with pytest.raises(ValueError, match='tolerance 1.5 must lie strictly'):
    count(table, tolerance=1.5, statistics=Statistics())
  with pytest.raises(ValueError, match='num_draws 0'):
    count(table, tolerance=0.1, statistics=Statistics(), num_draws=0)
  with pytest.raises(ValueError, match='draw_size 0'):
    count(table, tolerance=0.1, statistics=Statistics(), draw_size=0)
  with pytest.raises(ValueError, match='error_rate must be in'):
    Statistics(error_rate=1.0)
  with pytest.raises(ValueError, match='out of order'):
    population(settings=(0.1, 0.3, 0.5, 0.7, 0.9))
  with pytest.raises(ValueError, match='mean_exit_layers have shape'):
    population(mean_exit_layers=np.ones(3))
  with pytest.raises(ValueError, match='loss_range must be'):
    population(loss_range=(1.0, 0.0))


def test_what_is_no_p_value_or_procedure_is_refused():
  def nothing(losses, *, tolerance):
    return math.nan

  class Insistent(calibration.FixedSequence):
    def next_test(self, p_values, error_rate):
      return 0

  for statistics, message in (
    (Statistics(p_value=nothing), 'nothing gave nan'),
    (Statistics(procedure=Insistent()), 'asks for test 0 a second time'),
  ):
    with pytest.raises(ValueError, match=message):
      violations.count_violations(
        population(), tolerance=0.1, statistics=statistics, num_draws=2
      )

"""The p-values: formulas, traps, and another implementation."""

import math

import numpy as np
import pytest
from scipy import stats

from calm_jax import calibration
from calm_jax.calibration import p_values

ALL = [p_values.hoeffding, p_values.bentkus, p_values.hoeffding_bentkus]


def ones(count, number):
  """Returns `number` losses, `count` of them 1."""
  return np.arange(number) < count


def reference(risk, number, tolerance):
  """The formula in the most literal way, in the interior."""
  h1 = risk * math.log(risk / tolerance) if risk else 0.0
  h1 += (1 - risk) * math.log((1 - risk) / (1 - tolerance))
  tail = stats.binom.cdf(math.ceil(round(number * risk, 6)), number, tolerance)
  return min(math.exp(-number * h1), math.e * tail)


@pytest.mark.parametrize('number', [1, 10, 100, 1000])
@pytest.mark.parametrize('tolerance', [0.02, 0.1, 0.5, 0.95])
def test_hoeffding_bentkus_is_its_formula(number, tolerance):
  for count in range(0, int(number * tolerance), max(1, number // 37)):
    assert p_values.hoeffding_bentkus(
      ones(count, number), tolerance=tolerance
    ) == pytest.approx(reference(count / number, number, tolerance), rel=1e-9)


def test_hand_computed_values():
  zeros = np.zeros(50)
  assert p_values.hoeffding(zeros, tolerance=0.1) == pytest.approx(math.exp(-1))
  assert p_values.bentkus(zeros, tolerance=0.1) == pytest.approx(
    math.e * 0.9**50
  )
  # One failure in two at tolerance 0.75: e P(Binomial(2, 0.75) <= 1) is above
  # 1, and exp(-2 h1) = (0.75 * 0.25) * 4.
  half = [0.0, 1.0]
  assert p_values.bentkus(half, tolerance=0.75) == 1.0
  assert p_values.hoeffding_bentkus(half, tolerance=0.75) == pytest.approx(0.75)


@pytest.mark.parametrize('p_value', ALL)
def test_is_a_number_in_0_1_and_grows_with_the_risk(p_value):
  values = [
    p_value(ones(count, 200), tolerance=0.3) for count in range(0, 201, 5)
  ]
  assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)
  assert values == sorted(values)


@pytest.mark.parametrize('p_value', ALL)
def test_falls_with_the_tolerance_and_with_the_number(p_value):
  tolerances = np.linspace(0.21, 0.9, 20)
  values = [p_value(ones(20, 100), tolerance=t) for t in tolerances]
  assert values == sorted(values, reverse=True)
  numbers = [10, 50, 100, 500, 1000]
  values = [p_value(ones(n // 10, n), tolerance=0.3) for n in numbers]
  assert values == sorted(values, reverse=True)


@pytest.mark.parametrize('p_value', ALL)
@pytest.mark.parametrize('risk', [0.1, 0.2, 1.0])
def test_risk_at_or_above_the_tolerance_is_1(p_value, risk):
  assert p_value(np.full(1000, risk), tolerance=0.1) == 1.0


@pytest.mark.parametrize('p_value', ALL)
def test_order_and_shape_of_the_input_do_not_matter(p_value):
  losses = np.random.default_rng(0).beta(1, 9, size=101)
  value = p_value(losses, tolerance=0.15)
  assert p_value(losses[::-1], tolerance=0.15) == value
  assert p_value(losses.tolist(), tolerance=0.15) == value


def test_rounding_up_ignores_float_error():
  """0.07 * 100 is 7.000000000000001, which must not become 8."""
  number = 100
  assert math.ceil(0.07 * number) == 8
  exact = p_values.bentkus(ones(7, number), tolerance=0.15)
  assert p_values.bentkus(np.full(number, 0.07), tolerance=0.15) == exact
  assert exact == pytest.approx(
    math.e * stats.binom.cdf(7, number, 0.15), rel=1e-9
  )
  above = p_values.bentkus(np.full(number, 0.0701), tolerance=0.15)
  assert above == pytest.approx(math.e * stats.binom.cdf(8, number, 0.15))


def test_tiny_p_values_neither_vanish_early_nor_warn():
  value = p_values.hoeffding_bentkus(np.zeros(5000), tolerance=0.1)
  assert value == pytest.approx(0.9**5000, rel=1e-6)
  assert value > 0
  p_values.hoeffding_bentkus(np.zeros(10**6), tolerance=0.5)


@pytest.mark.parametrize('p_value', ALL)
def test_bad_input_is_named(p_value):
  with pytest.raises(ValueError, match=r'loss 1 is 1\.5.*loss_range'):
    p_value([0.0, 1.5], tolerance=0.1)
  with pytest.raises(ValueError, match='loss 0 is nan'):
    p_value([math.nan, 0.0], tolerance=0.1)
  with pytest.raises(ValueError, match=r'loss 0 is -0\.1'):
    p_value([-0.1], tolerance=0.1)
  for empty in ([], np.zeros((2, 2))):
    with pytest.raises(ValueError, match='N >= 1'):
      p_value(empty, tolerance=0.1)
  for tolerance in (0.0, 1.0, -0.1, math.nan):
    with pytest.raises(ValueError, match='tolerance must be in'):
      p_value([0.0], tolerance=tolerance)


@pytest.mark.parametrize('number', [20, 100, 5000])
@pytest.mark.parametrize('tolerance', [0.02, 0.1, 0.25, 0.525])
def test_hoeffding_bentkus_equals_mapie(number, tolerance):
  methods = pytest.importorskip('mapie.risk_control.methods')
  for count in range(0, int(number * tolerance) + 1, max(1, number // 50)):
    # MAPIE's ceil has the float error, so give it risks that have none.
    if math.ceil(number * (count / number)) != count:
      continue
    theirs = methods.compute_hoeffding_bentkus_p_value(
      np.array([count / number]), number, tolerance
    )
    ours = p_values.hoeffding_bentkus(ones(count, number), tolerance=tolerance)
    assert ours == pytest.approx(min(1.0, theirs.item()), rel=1e-7)


def test_exact_binomial_is_the_tail_and_takes_counts_only():
  for count in (0, 3, 30, 100):
    expected = stats.binom.cdf(count, 100, 0.1)
    found = p_values.exact_binomial(ones(count, 100), tolerance=0.1)
    assert found == pytest.approx(expected)
    # No bound of the mean is below it.
    assert found <= p_values.hoeffding_bentkus(ones(count, 100), tolerance=0.1)
  with pytest.raises(
    ValueError, match=r'loss 1 is 0\.5; use hoeffding_bentkus'
  ):
    p_values.exact_binomial([0.0, 0.5], tolerance=0.1)


def test_exact_binomial_takes_0_and_1_but_for_rounding():
  noisy = np.where(np.arange(100) < 7, 1 - 1e-15, 1e-15)
  assert p_values.exact_binomial(noisy, tolerance=0.1) == (
    p_values.exact_binomial(ones(7, 100), tolerance=0.1)
  )
  assert p_values.exact_binomial(np.ones(5), tolerance=0.1) == 1.0
  with pytest.raises(ValueError, match=r'loss 0 is 1\.5'):
    p_values.exact_binomial([1.5], tolerance=0.1)
  with pytest.raises(ValueError, match='N >= 1'):
    p_values.exact_binomial([], tolerance=0.1)
  with pytest.raises(ValueError, match='tolerance must be in'):
    p_values.exact_binomial([0.0], tolerance=1.0)


@pytest.mark.parametrize('number', [20, 100, 5000])
@pytest.mark.parametrize('tolerance', [0.02, 0.1, 0.25, 0.525])
def test_exact_binomial_equals_mapie(number, tolerance):
  """Of binary losses MAPIE takes the binomial tail or Hoeffding's bound of it.

  The tail is never above the bound, so that theirs is the tail.
  """
  methods = pytest.importorskip('mapie.risk_control.methods')
  for count in range(0, int(number * tolerance) + 1, max(1, number // 50)):
    if math.ceil(number * (count / number)) != count:
      continue
    theirs = methods.compute_hoeffding_bentkus_p_value(
      np.array([count / number]), number, tolerance, binary=True
    )
    ours = p_values.exact_binomial(ones(count, number), tolerance=tolerance)
    assert ours == pytest.approx(theirs.item(), rel=1e-7)


@pytest.mark.parametrize('p_value', [*ALL, p_values.exact_binomial])
def test_rows_are_samples(p_value):
  samples = np.random.default_rng(0).random((7, 50)) < 0.05
  found = p_values.apply_rows(p_value, samples, tolerance=0.2)
  assert found.tolist() == [p_value(row, tolerance=0.2) for row in samples]


def around(mean):
  """Returns a mean, and the next numbers below and above it."""
  return np.array([mean, np.nextafter(mean, 0), np.nextafter(mean, 1)])


NUMBERS = np.arange(1, 3001)
TOLERANCES = np.array([0.001, 0.02, 0.05, 0.1, 0.25, 1 / 3, 0.525, 0.9, 0.999])


@pytest.mark.parametrize(
  ('of_total', 'least'),
  [
    (p_values.hoeffding_of_total, 1 - 1e-9),
    (p_values.bentkus_of_total, 1.0),
    (p_values.hoeffding_bentkus_of_total, 1 - 1e-9),
  ],
)
def test_a_mean_within_rounding_of_the_tolerance_has_p_value_1(of_total, least):
  for mean in around(TOLERANCES):
    found = of_total(
      mean * NUMBERS[:, np.newaxis], NUMBERS[:, None], TOLERANCES
    )
    assert found.shape == (3000, len(TOLERANCES))
    assert found.min() >= least and found.max() <= 1.0
  found = of_total(NUMBERS[:, None] * TOLERANCES, NUMBERS[:, None], TOLERANCES)
  assert (found == 1.0).all(), 'not 1 at the tolerance itself'


def test_counts_around_the_tolerance_have_tails_in_0_1():
  """The mean of 0 and 1 is nearest to the tolerance at these counts."""
  number = NUMBERS[:, np.newaxis]
  nearest = np.round(number * TOLERANCES)
  tails = [
    p_values.exact_binomial_of_total(
      np.clip(nearest + step, 0, number), number, TOLERANCES
    )
    for step in (-1, 0, 1)
  ]
  assert min(map(np.min, tails)) >= 0 and max(map(np.max, tails)) <= 1
  assert (np.diff(tails, axis=0) >= 0).all()


@pytest.mark.parametrize('name', calibration.P_VALUES)
def test_losses_at_the_tolerance_can_be_calibrated(name):
  """For some of those numbers, from the losses on."""
  p_value = calibration.P_VALUES[name]
  for number in (1, 2, 3, 7, 64, 100, 997, 3000):
    for tolerance in TOLERANCES:
      means = around(tolerance)
      if name == 'exact_binomial':
        means = np.clip(np.round(number * tolerance) + [-1, 0, 1], 0, number)
        losses = (np.arange(number)[:, np.newaxis] < means).astype(float)
      else:
        losses = np.tile(means, (number, 1))
      tests = p_values.apply_rows(p_value, losses.T, tolerance=tolerance)
      assert ((tests >= 0) & (tests <= 1)).all()
      if name != 'exact_binomial':
        assert tests.min() >= 1 - 1e-9
  for tolerance in (0.1, 1 / 3):  # the reasons that are given take longer
    losses = np.full((99, 1), tolerance)
    if name == 'exact_binomial':
      losses = np.arange(99)[:, np.newaxis] < 99 * tolerance
    found = calibration.calibrate(
      losses, [0.5], tolerance=tolerance, p_value=p_value
    )
    assert not found.certified and found.p_values[0] > 0.5


@pytest.mark.parametrize('excess', [1e-15, 1e-12])
def test_what_rounding_adds_to_1_is_taken_off_everywhere(excess):
  def above(losses, *, tolerance):
    del losses, tolerance
    return 1 + excess

  losses = np.zeros((5, 1))
  found = calibration.calibrate(losses, [0.5], p_value=above)
  assert found.p_values == (1.0,) and not found.certified
  assert p_values.apply_rows(above, losses.T, tolerance=0.1).tolist() == [1.0]
  assert calibration.Holm()([1 + excess, 0.01], 0.05) == (1,)


def test_more_than_rounding_is_no_p_value():
  def above(losses, *, tolerance):
    del losses, tolerance
    return 1.001

  with pytest.raises(ValueError, match=r'above gave 1\.001, which is no p-val'):
    p_values.apply_rows(above, np.zeros((2, 5)), tolerance=0.1)

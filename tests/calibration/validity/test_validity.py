"""Monte Carlo: is the error rate kept, on losses whose risk is known?

A population of losses is a table whose column means ARE the risks; samples are
drawn from its rows with replacement. Counting how often the certified setting's
risk is above the tolerance then has no noise but the binomial one (a mean over
a held-out split, being noisy itself, would not do). Deliberately wrong p-values
are caught by the same checks, which shows that the checks can fail.
"""

import functools

import numpy as np
import pytest
from scipy import stats

from calm_jax import calibration

ROWS = 4000
QUANTILES = (np.arange(ROWS) + 0.5) / ROWS
P_VALUES = {
  name: getattr(calibration, name)
  for name in ('hoeffding', 'bentkus', 'hoeffding_bentkus')
}


def bernoulli(risk):
  """Losses that are 0 or 1."""
  return (QUANTILES < risk).astype(np.float64)


def beta(risk):
  """Losses all over [0, 1], most of them small."""
  return stats.beta(0.5, 0.5 * (1 - risk) / risk).ppf(1 - QUANTILES)


def sparse(risk):
  """Losses that are 0 for most examples and 0.6 to 1 for the others."""
  return np.where(QUANTILES < risk / 0.8, 1 - 0.4 * QUANTILES * 0.8 / risk, 0.0)


def nearly_constant(risk):
  return risk * (0.9 + 0.2 * QUANTILES)


LAWS = [bernoulli, beta, sparse, nearly_constant]


@functools.cache
def population(law, risks):
  """Returns losses [ROWS, J] of about these risks, all driven by one quantile.

  The settings are as dependent as they can be: an example that is hard at one
  setting is hard at all of them. What the risks are to the last digit, the
  column means say, and tolerances are set from them.
  """
  losses = np.stack([law(risk) for risk in risks], axis=1)
  np.testing.assert_allclose(losses.mean(axis=0), risks, rtol=0.02)
  return losses


def assert_rate(violations, simulations, error_rate):
  """Raises AssertionError if the rate is above error_rate + 3 std. errors."""
  slack = 3 * (error_rate * (1 - error_rate) / simulations) ** 0.5
  rate = violations / simulations
  assert rate <= error_rate + slack, f'{rate:.4f} for error rate {error_rate}'


def check_super_uniform(p_value, law, *, risk, number, simulations):
  """Checks P(p <= u) <= u for several u, the tolerance just below the risk."""
  rng = np.random.default_rng([number, simulations])
  losses = population(law, (risk,))[:, 0]
  tolerance = losses.mean() - 1e-9
  values = np.array(
    [
      p_value(losses[rng.integers(ROWS, size=number)], tolerance=tolerance)
      for _ in range(simulations)
    ]
  )
  for level in (0.01, 0.05, 0.1, 0.2, 0.5):
    assert_rate((values <= level).sum(), simulations, level)


def check_certificates(
  p_value, law, *, risk, number, simulations, shuffle, error_rate=0.05
):
  """Counts certificates of settings whose risk is above the tolerance.

  The first settings are so good that testing reaches the fourth, whose risk is
  just above the tolerance: where a violation is likeliest. Returns how often it
  was reached.
  """
  scale = (0.1, 0.2, 0.4, 1.0, 1.02, 1.1)
  losses = population(law, tuple(risk * factor for factor in scale))
  risks = losses.mean(axis=0)
  tolerance = risks[3] - 1e-9
  rng = np.random.default_rng([number, simulations])
  if shuffle:
    losses = rng.permuted(losses, axis=0)
  chosen = np.array(
    [
      calibration.calibrate(
        losses[rng.integers(ROWS, size=number)],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        tolerance=tolerance,
        error_rate=error_rate,
        p_value=p_value,
      ).index
      for _ in range(simulations)
    ],
    np.float64,  # None, nothing certified, becomes NaN
  )
  assert_rate((chosen >= 3).sum(), simulations, error_rate)
  return (chosen >= 2).mean()


@pytest.mark.parametrize('law', LAWS)
@pytest.mark.parametrize('p_value', P_VALUES.values(), ids=P_VALUES)
@pytest.mark.parametrize(('risk', 'number'), [(0.1, 100), (0.3, 37)])
def test_p_value_is_super_uniform(p_value, law, risk, number):
  check_super_uniform(p_value, law, risk=risk, number=number, simulations=400)


@pytest.mark.parametrize('law', LAWS)
@pytest.mark.parametrize('shuffle', [False, True], ids=['dependent', 'free'])
def test_error_rate_is_kept(law, shuffle):
  reached = check_certificates(
    calibration.hoeffding_bentkus,
    law,
    risk=0.1,
    number=250,
    simulations=400,
    shuffle=shuffle,
  )
  assert reached > 0.9, 'testing did not get to where violations can happen'


@pytest.mark.parametrize('law', LAWS)
def test_error_rate_is_kept_for_signed_losses(law):
  """Losses in [-1, 1] go through loss_range."""
  # Early exit helps a quarter of the examples a little.
  losses = population(law, (0.02, 0.3)) * 0.8
  rng = np.random.default_rng(7)
  losses[rng.permutation(ROWS)[: ROWS // 4]] -= 0.2
  tolerance = losses[:, 1].mean() - 1e-9
  violations = sum(
    calibration.calibrate(
      losses[rng.integers(ROWS, size=300)],
      [0.9, 0.5],
      tolerance=tolerance,
      error_rate=0.1,
      loss_range=(-1, 1),
    ).index
    == 1
    for _ in range(400)
  )
  assert_rate(violations, 400, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize('law', LAWS)
@pytest.mark.parametrize('p_value', P_VALUES.values(), ids=P_VALUES)
@pytest.mark.parametrize('number', [30, 101, 400])
@pytest.mark.parametrize('risk', [0.02, 0.1, 0.25])
def test_p_value_is_super_uniform_long(p_value, law, number, risk):
  check_super_uniform(p_value, law, risk=risk, number=number, simulations=4000)


@pytest.mark.slow
@pytest.mark.parametrize('law', LAWS)
@pytest.mark.parametrize('shuffle', [False, True], ids=['dependent', 'free'])
@pytest.mark.parametrize(('risk', 'number'), [(0.1, 250), (0.25, 100)])
def test_error_rate_is_kept_long(law, shuffle, risk, number):
  check_certificates(
    calibration.hoeffding_bentkus,
    law,
    risk=risk,
    number=number,
    simulations=4000,
    shuffle=shuffle,
  )


# What these checks are for: p-values that look right and are not.


def normal_approximation(losses, *, tolerance):
  """The t-test: too sure when no rare large loss was drawn."""
  error = losses.std(ddof=1) / losses.size**0.5
  if error == 0:
    return float(losses.mean() >= tolerance)
  return float(stats.norm.cdf((losses.mean() - tolerance) / error))


def off_by_one(losses, *, tolerance):
  """The binomial tail without its factor e, and one below the count."""
  count = np.ceil(losses.sum()) - 1
  return float(stats.binom.cdf(count, losses.size, tolerance))


def variance_across_settings(losses, *, tolerance, spread=1e-4):
  """A Bernstein bound whose variance is that of the means of the settings."""
  gap = max(0.0, tolerance - losses.mean())
  return float(np.exp(-losses.size * gap**2 / (2 * spread + 2 * gap / 3)))


@pytest.mark.parametrize(
  ('wrong', 'law', 'risk', 'number'),
  [
    (normal_approximation, sparse, 0.02, 50),
    (off_by_one, bernoulli, 0.3, 20),
    (variance_across_settings, bernoulli, 0.3, 100),
  ],
)
def test_a_wrong_p_value_is_caught(wrong, law, risk, number):
  with pytest.raises(AssertionError, match='for error rate'):
    check_super_uniform(wrong, law, risk=risk, number=number, simulations=400)


def test_a_wrong_procedure_is_caught():
  """Choosing the best of many settings without paying for it."""

  class BestOfAll:
    name = 'best_of_all'

    def __call__(self, p_values, error_rate):
      return tuple(np.flatnonzero(np.asarray(p_values) <= error_rate))

    def next_test(self, p_values, error_rate):
      del error_rate
      missing = np.flatnonzero(np.isnan(p_values))
      return int(missing[0]) if missing.size else None

  rng = np.random.default_rng(0)
  losses = rng.permuted(population(bernoulli, (0.3,) * 40), axis=0)
  tolerance = losses.mean() - 1e-9
  for procedure, caught in [(BestOfAll(), True), (None, False)]:
    violations = sum(
      calibration.calibrate(
        losses[rng.integers(ROWS, size=100)],
        np.linspace(1, 0, 40),
        tolerance=tolerance,
        procedure=procedure,
      ).certified
      for _ in range(200)
    )
    if caught:
      with pytest.raises(AssertionError):
        assert_rate(violations, 200, 0.05)
    else:
      assert_rate(violations, 200, 0.05)

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
from calm_jax.calibration import p_values

ROWS = 4000
QUANTILES = (np.arange(ROWS) + 0.5) / ROWS
P_VALUES = calibration.P_VALUES
PROCEDURES = [
  calibration.fixed_sequence(),
  calibration.fixed_sequence(num_starts=3),
  calibration.fixed_sequence(starts=(0, 3)),
  calibration.Bonferroni(),
  calibration.Holm(),
]


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
# Every p-value with the laws that it is for.
P_VALUES_AND_LAWS = [
  pytest.param(p_value, law, id=f'{name}-{law.__name__}')
  for name, p_value in P_VALUES.items()
  for law in ([bernoulli] if name == 'exact_binomial' else LAWS)
]


@functools.cache
def population(law, risks, dependence='same'):
  """Returns losses [ROWS, J] of about these risks.

  'same': settings are as dependent as they can be, an example that is hard at
  one of them is hard at all. 'opposite': what is hard at one is easy at the
  next. 'none': independent. What the risks are to the last digit, the column
  means say, and tolerances are set from them.
  """
  losses = np.stack([law(risk) for risk in risks], axis=1)
  # Laws fall or rise with the quantile; sorted, they all rise.
  losses = np.sort(losses, axis=0)
  if dependence == 'opposite':
    losses[:, 1::2] = losses[::-1, 1::2]
  elif dependence == 'none':
    losses = np.random.default_rng(len(risks)).permuted(losses, axis=0)
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
  samples = losses[rng.integers(ROWS, size=(simulations, number))]
  values = p_values.apply_rows(p_value, samples, tolerance=tolerance)
  for level in (0.01, 0.05, 0.1, 0.2, 0.5):
    assert_rate((values <= level).sum(), simulations, level)


def simulated_tests(p_value, losses, tolerance, shape):
  """Returns p-values [simulations, J] of samples of rows [simulations, N]."""
  rows = np.random.default_rng(shape).integers(ROWS, size=shape)
  return np.stack(
    [
      p_values.apply_rows(p_value, column[rows], tolerance=tolerance)
      for column in losses.T
    ],
    axis=1,
  )


def check_certificates(
  p_value,
  law,
  *,
  risk,
  number,
  simulations,
  dependence,
  procedure=None,
  error_rate=0.05,
):
  """Counts certificates of settings whose risk is above the tolerance.

  The first settings are so good that testing reaches the fourth, whose risk is
  just above the tolerance: where a violation is likeliest. Several starts and
  corrections meet all three bad ones. Returns how often a good one passed.
  """
  scale = (0.1, 0.2, 0.4, 1.0, 1.02, 1.1)
  losses = population(law, tuple(risk * factor for factor in scale), dependence)
  tolerance = losses.mean(axis=0)[3] - 1e-9
  procedure = procedure or calibration.fixed_sequence()
  tests = simulated_tests(p_value, losses, tolerance, (simulations, number))
  rejected = [procedure(row, error_rate) for row in tests]
  false = sum(any(index >= 3 for index in row) for row in rejected)
  assert_rate(false, simulations, error_rate)
  return np.mean([bool(row) for row in rejected])


@pytest.mark.parametrize(('p_value', 'law'), P_VALUES_AND_LAWS)
@pytest.mark.parametrize(('risk', 'number'), [(0.1, 100), (0.3, 37)])
def test_p_value_is_super_uniform(p_value, law, risk, number):
  check_super_uniform(p_value, law, risk=risk, number=number, simulations=400)


@pytest.mark.parametrize('procedure', PROCEDURES, ids=lambda item: item.name)
@pytest.mark.parametrize('dependence', ['same', 'opposite', 'none'])
@pytest.mark.parametrize(
  ('p_value', 'law'),
  [
    ('hoeffding_bentkus', beta),
    ('exact_binomial', bernoulli),
    ('betting', sparse),
    ('betting', nearly_constant),
  ],
)
def test_error_rate_is_kept(procedure, dependence, p_value, law):
  reached = check_certificates(
    P_VALUES[p_value],
    law,
    risk=0.1,
    number=250,
    simulations=400,
    dependence=dependence,
    procedure=procedure,
  )
  assert reached > 0.9, 'nothing passes, so that nothing can go wrong'


def check_where_all_is_bad(procedure, dependence, simulations):
  """Counts any certificate, where no setting deserves one.

  The worst that can happen to procedures that share the error rate. Losses of 0
  and 1 and their exact p-value bring the rate as near to the error rate as the
  procedure does.
  """
  losses = population(bernoulli, (0.3,) * 6, dependence)
  tolerance = losses[:, 0].mean() - 1e-9
  tests = simulated_tests(
    calibration.exact_binomial, losses, tolerance, (simulations, 100)
  )
  violations = sum(bool(procedure(row, 0.2)) for row in tests)
  assert_rate(violations, simulations, 0.2)
  return violations / simulations


@pytest.mark.parametrize('procedure', PROCEDURES, ids=lambda item: item.name)
@pytest.mark.parametrize('dependence', ['same', 'opposite', 'none'])
def test_error_rate_is_kept_where_all_is_bad(procedure, dependence):
  rate = check_where_all_is_bad(procedure, dependence, 400)
  # Of settings that fail together one decides, at its share of the error rate;
  # of independent ones the shares add up.
  assert rate > (0.08 if dependence == 'none' else 0.01)


def test_simulated_certificates_are_those_of_calibrate():
  """What `check_certificates` does in bulk, `calibrate` does one by one."""
  losses = population(beta, (0.01, 0.05, 0.1), 'none')
  rng = np.random.default_rng(2)
  for procedure in PROCEDURES[:1] + PROCEDURES[3:]:
    for p_value in P_VALUES.values():
      if p_value is calibration.exact_binomial:
        continue
      sample = losses[rng.integers(ROWS, size=200)]
      certificate = calibration.calibrate(
        sample,
        [0.9, 0.8, 0.7],
        tolerance=0.09,
        p_value=p_value,
        procedure=procedure,
      )
      tests = [p_value(column, tolerance=0.09) for column in sample.T]
      np.testing.assert_allclose(certificate.p_values, tests)
      rejected = procedure(np.array(tests), 0.05)
      assert certificate.index == max(rejected, default=None)


@pytest.mark.parametrize(
  'p_value', [calibration.hoeffding_bentkus, calibration.betting]
)
@pytest.mark.parametrize('law', LAWS)
def test_error_rate_is_kept_for_signed_losses(law, p_value):
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
      p_value=p_value,
    ).index
    == 1
    for _ in range(400)
  )
  assert_rate(violations, 400, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(('p_value', 'law'), P_VALUES_AND_LAWS)
@pytest.mark.parametrize('number', [30, 101, 400])
@pytest.mark.parametrize('risk', [0.02, 0.1, 0.25])
def test_p_value_is_super_uniform_long(p_value, law, number, risk):
  check_super_uniform(p_value, law, risk=risk, number=number, simulations=4000)


@pytest.mark.slow
@pytest.mark.parametrize('procedure', PROCEDURES, ids=lambda item: item.name)
@pytest.mark.parametrize('dependence', ['same', 'opposite', 'none'])
@pytest.mark.parametrize(('p_value', 'law'), P_VALUES_AND_LAWS)
def test_error_rate_is_kept_long(p_value, law, dependence, procedure):
  check_certificates(
    p_value,
    law,
    risk=0.1,
    number=250,
    simulations=2000,
    dependence=dependence,
    procedure=procedure,
  )


@pytest.mark.slow
@pytest.mark.parametrize('procedure', PROCEDURES, ids=lambda item: item.name)
@pytest.mark.parametrize('dependence', ['same', 'opposite', 'none'])
def test_error_rate_is_kept_where_all_is_bad_long(procedure, dependence):
  check_where_all_is_bad(procedure, dependence, 4000)


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


def bets_that_peek(losses, *, tolerance):
  """Betting whose bet on a loss knows a little of that loss."""
  gains = tolerance - losses
  bets = np.where(gains > 0, 0.5, 0.3) / (1 - tolerance)
  wealth = np.cumsum(np.log1p(bets * gains))
  return float(np.exp(-max(0.0, wealth.max())))


def order_chosen_afterwards(losses, *, tolerance):
  """Betting on the small losses first."""
  gains = np.sort(tolerance - losses)[::-1]
  wealth = np.cumsum(np.log1p(0.5 * gains))
  return float(np.exp(-max(0.0, wealth.max())))


@pytest.mark.parametrize(
  ('wrong', 'law', 'risk', 'number'),
  [
    (normal_approximation, sparse, 0.02, 50),
    (off_by_one, bernoulli, 0.3, 20),
    (variance_across_settings, bernoulli, 0.3, 100),
    (bets_that_peek, bernoulli, 0.3, 100),
    (order_chosen_afterwards, beta, 0.3, 100),
  ],
)
def test_a_wrong_p_value_is_caught(wrong, law, risk, number):
  with pytest.raises(AssertionError, match='for error rate'):
    check_super_uniform(wrong, law, risk=risk, number=number, simulations=400)


@pytest.mark.slow
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


def test_starts_that_do_not_share_the_error_rate_are_caught():
  """Bad settings, independent of each other, each start at the whole rate."""

  class Unshared(calibration.FixedSequence):
    def level(self, num_settings, error_rate):
      return error_rate

  losses = population(bernoulli, (0.3,) * 8, 'none')
  tests = simulated_tests(
    calibration.exact_binomial, losses, losses.mean() - 1e-9, (400, 100)
  )

  def violations(procedure):
    return sum(bool(procedure(row, 0.05)) for row in tests)

  assert_rate(violations(calibration.fixed_sequence(num_starts=8)), 400, 0.05)
  with pytest.raises(AssertionError):
    assert_rate(violations(Unshared(num_starts=8)), 400, 0.05)

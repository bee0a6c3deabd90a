"""FREE's mixture: planted laws, the formulas again, and what is refused."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from calm_jax import calibration

Law, Mixture = calibration.BetaLaw, calibration.BetaMixture
PLANTED = Mixture(agree=Law(6.0, 2.0), disagree=Law(1.5, 3.0))


def draw(mixture, rng, number, rate=0.5):
  """Returns confidences and agreement [M] of which a rate agrees."""
  agrees = rng.random(number) < rate
  agree, disagree = (
    rng.beta(law.alpha, law.beta, number)
    for law in (mixture.agree, mixture.disagree)
  )
  return np.where(agrees, agree, disagree), agrees


def parameters(mixture):
  return np.array([*dataclasses.astuple(mixture)]).ravel()


def test_planted_laws_are_found():
  """Within 5 standard errors of 100 fits; with labels swapped they are not."""
  rng = np.random.default_rng(0)
  samples = [draw(PLANTED, rng, 2000) for _ in range(100)]
  found = np.array(
    [parameters(calibration.fit_beta_mixture(*sample)) for sample in samples]
  )
  error = found.std(axis=0) / np.sqrt(len(found))
  # What pairs of the other law count pulls by about a thousandth.
  bound = 5 * error + 0.005 * parameters(PLANTED)
  off = np.abs(found.mean(axis=0) - parameters(PLANTED))
  assert (off < bound).all(), off / bound
  assert (bound < 0.06 * parameters(PLANTED)).all(), 'shows nothing'
  swapped = calibration.fit_beta_mixture(samples[0][0], ~samples[0][1])
  assert (np.abs(parameters(swapped) - parameters(PLANTED)) > bound).any()


def fitted_literally(confidences, agrees, kind):
  """The published steps with SciPy's and NumPy's sums, one pair after another.

  Memberships are 0.2 and 0, at least 1e-4, and divided by their sum.
  """
  total = mean = square = 0.0
  for confidence, agreed in zip(confidences, agrees, strict=True):
    x = min(max(confidence, 1e-4), 1 - 1e-4)
    member = [max(0.2 * (agreed == law), 1e-4) for law in (False, True)]
    weight = member[kind] / sum(member)
    total += weight
    mean += weight * x
    square += weight * x**2
  mean /= total
  variance = square / total - mean**2
  alpha = mean * (mean * (1 - mean) / variance - 1)
  return alpha, alpha * (1 - mean) / mean


def threshold_literally(agree, disagree):
  """The published rule, on the quotient of densities."""
  passing = 0
  for number in range(10):
    x = 0.3 + number * 0.6 / 9
    one, other = stats.beta.pdf(x, *agree), stats.beta.pdf(x, *disagree)
    passing += one / (one + other) > 0.4
  return 0.3 + min(10 - passing, 9) * 0.6 / 9


@pytest.mark.parametrize('rate', [0.05, 0.5, 0.9])
def test_the_fit_is_the_formula(rate):
  confidences, agrees = draw(PLANTED, np.random.default_rng(1), 300, rate)
  confidences[:3], agrees[:3] = (0.0, 1.0, 1.0), (False, True, False)
  mixture = calibration.fit_beta_mixture(confidences, agrees)
  agree = fitted_literally(confidences, agrees, True)
  disagree = fitted_literally(confidences, agrees, False)
  np.testing.assert_allclose(
    parameters(mixture), [*agree, *disagree], rtol=1e-9
  )
  assert mixture.threshold() == pytest.approx(
    threshold_literally(agree, disagree)
  )


def test_the_other_law_pulls_where_one_is_rare():
  """As published: of 1,000 pairs 10 disagree, all below every other."""
  confidences = np.r_[np.linspace(0.1, 0.2, 10), np.linspace(0.8, 0.99, 990)]
  mixture = calibration.fit_beta_mixture(confidences, np.arange(1000) >= 10)
  share = 1e-4 / 0.2001
  others = share * 990 / (share * 990 + (1 - share) * 10)
  assert others == pytest.approx(0.047, abs=1e-3)
  expected = (1 - others) * 0.15 + others * 0.895
  assert mixture.disagree.mean == pytest.approx(expected)


@pytest.mark.parametrize(
  'agree, disagree, expected',
  [
    # (x / (1 - x))^3 against 2/3: the posterior passes 0.4 at x = 0.466.
    (Law(4, 1), Law(1, 4), 0.5),
    # 9 / (9 + 10 (1 - x)), which passes everywhere.
    (Law(1, 9), Law(1, 10), 0.3),
    # It passes nowhere: 1000 x^999 is 0 up to 0.9.
    (Law(1000, 1), Law(1, 1), 0.9),
    # 18018 x^8 (1 - x)^5 against 2/3: 0.60 at 0.3667, 1.31 at 0.4333, 1.49 at
    # 0.7667, 0.54 at 0.8333. Six points pass, of which 0.4333 is the first; the
    # published rule counts them.
    (Law(9, 6), Law(1, 1), 0.3 + 4 * 0.6 / 9),
  ],
)
def test_thresholds_by_hand(agree, disagree, expected):
  mixture = Mixture(agree=agree, disagree=disagree)
  assert mixture.threshold() == pytest.approx(expected)


def test_the_posterior_is_a_quotient_of_densities():
  x = np.linspace(0.05, 0.95, 19)
  one, other = stats.beta.pdf(x, 6, 2), stats.beta.pdf(x, 1.5, 3)
  np.testing.assert_allclose(PLANTED.posterior(x), one / (one + other))


def test_the_ends_are_finite():
  """Densities are 0 and infinite there, and underflow between narrow laws."""
  narrow = Mixture(agree=Law(9e6, 1e6), disagree=Law(1e6, 9e6))
  for mixture in (PLANTED, Mixture(Law(0.5, 0.3), Law(0.2, 0.9)), narrow):
    ends = mixture.posterior([0.0, 0.5 - 1e-9, 1.0])
    assert np.isfinite(ends).all() and ends[0] < 0.1 and ends[2] > 0.9
  assert narrow.threshold() == pytest.approx(0.5)
  confidences = [0.0, 0.0, 0.1, 0.9, 1.0, 1.0]
  agrees = [False, False, False, True, True, True]
  mixture = calibration.fit_beta_mixture(confidences, agrees)
  assert (parameters(mixture) > 0).all()
  # All at the two ends, which no Beta law has as its moments: kept from them.
  mixture = calibration.fit_beta_mixture(
    [0.0, 1.0] * 2, [True] * 2 + [False] * 2
  )
  assert (parameters(mixture) > 0).all()


@pytest.mark.parametrize(
  'confidences, agrees, message',
  [
    ([0.2, 0.4], [True, True], '0 of 2 pairs disagree; .*more inputs'),
    ([], [], '0 of 0 pairs agree;'),
    # What is missing is named, not what all have in common.
    ([0.9, 0.9], [True, True], '0 of 2 pairs disagree;'),
    ([0.2, 0.4, 0.7], [True, False, False], '1 of 3 pairs agree, all of'),
    (
      [0.5, 0.5, 0.2, 0.3],
      [True, True, False, False],
      r'2 of 4 pairs agree, all of confidence 0\.5; a Beta law takes two',
    ),
    ([0.2, 1.5], [True, False], r'confidence 1\.5 is not in \[0, 1\]'),
    ([0.2, np.nan], [True, False], 'confidence nan is not in'),
    ([0.2, 0.3], [True], r'confidences are \[2\] and agrees \[1\]'),
    ([[0.2]], [[True]], r'confidences are \[1, 1\]'),
    ([0.2, 0.3], [1, 2], 'agrees is int64; give bools'),
  ],
)
def test_pairs_that_have_no_mixture_are_refused(confidences, agrees, message):
  agrees = np.asarray(agrees, bool) if not agrees else agrees
  with pytest.raises(ValueError, match=message):
    calibration.fit_beta_mixture(confidences, agrees)


def test_confidences_that_say_nothing_give_no_threshold():
  swapped = Mixture(agree=PLANTED.disagree, disagree=PLANTED.agree)
  with pytest.raises(ValueError, match=r'is 0\.3333 where .* lower, 0\.75,'):
    swapped.threshold()

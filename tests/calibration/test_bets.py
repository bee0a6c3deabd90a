"""Betting: wealth by hand, the order, and where it beats the mean alone."""

import math

import numpy as np
import pytest

from calm_jax import calibration
from calm_jax.calibration import p_values


def test_a_bet_on_one_loss_by_hand():
  # One loss of 0: W_1 = 1 + b * tolerance with b = 0.99 / (1 - tolerance), as
  # the goal ln 20 is far.
  wealth = 1 + 0.99 / 0.9 * 0.1
  assert calibration.betting([0.0], tolerance=0.1) == pytest.approx(1 / wealth)
  assert calibration.betting([1.0], tolerance=0.1) == 1.0


def literal_p_value(losses, *, tolerance, seed, level):
  """The equations of the docstring, one loss after the other."""
  number = len(losses)
  order = np.random.default_rng(seed).permutation(number)
  aims = [i * number // min(number, 32) for i in range(min(number, 32))]
  variance = tolerance * (1 - tolerance)
  squares, weight = 1.0, 1 / variance
  wealth = most = 1.0
  for i in range(number):
    if i in aims:
      reached = math.floor(math.log(most) / -math.log(level) + 1e-9)
      goal = -(reached + 1) * math.log(level)
      remaining = math.sqrt((goal - math.log(wealth)) / (number - i))
    bet = min(remaining * math.sqrt(2 / variance), 0.99 / (1 - tolerance))
    gain = tolerance - losses[order[i]]
    wealth *= 1 + bet * gain
    most = max(most, wealth)
    squares += gain**2
    weight += 1
    variance = squares / weight
  return 1 / most


@pytest.mark.parametrize('number', [1, 5, 32, 100, 333])
@pytest.mark.parametrize('level', [0.05, 0.01])
def test_is_its_equations(number, level):
  rng = np.random.default_rng(number)
  for losses, tolerance in (
    (rng.beta(1, 9, size=number), 0.15),
    ((rng.random(number) < 0.1).astype(float), 0.2),
    (rng.uniform(0.4, 0.6, size=number), 0.52),
    (np.zeros(number), 0.1),
  ):
    expected = literal_p_value(losses, tolerance=tolerance, seed=3, level=level)
    found = calibration.Betting(3, level)(losses, tolerance=tolerance)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_level_is_named_and_pays_where_it_is_aimed_at():
  """At a third of the error rate, as of three starts, aimed or not."""
  assert calibration.Betting(2, 0.01).name == 'betting(seed=2, level=0.01)'
  samples = np.random.default_rng(5).random((1000, 300)) < 0.05
  aimed, plain = (
    (calibration.Betting(0, level).batch(samples, tolerance=0.1) <= 0.01).mean()
    for level in (0.01, 0.05)
  )
  assert aimed > plain + 0.05


def test_bets_know_the_past_only():
  """Wealth after i losses does not depend on what follows."""
  rng = np.random.default_rng(0)
  losses = rng.beta(1, 9, size=300)
  order = np.random.default_rng(0).permutation(300)
  changed = losses.copy()
  # Losses of 1 at the end of the order can only lower what comes after.
  changed[order[200:]] = 1.0
  tolerance = 0.15
  assert calibration.betting(changed, tolerance=tolerance) >= (
    calibration.betting(losses, tolerance=tolerance)
  )
  worse = losses.copy()
  worse[order[:100]] = 1.0
  assert calibration.betting(worse, tolerance=tolerance) == 1.0


def test_the_seed_decides_the_order_and_is_in_the_name():
  losses = np.random.default_rng(1).beta(1, 9, size=200)
  values = [
    calibration.Betting(seed)(losses, tolerance=0.15) for seed in range(5)
  ]
  assert len(set(values)) > 1
  assert values[0] == calibration.betting(losses, tolerance=0.15)
  names = {calibration.Betting(seed).name for seed in range(5)}
  assert names == {f'betting(seed={seed})' for seed in range(5)}
  assert calibration.betting.name == 'betting(seed=0)'


def test_many_samples_at_once_are_those_one_by_one():
  samples = np.random.default_rng(2).beta(1, 9, size=(20, 137))
  found = p_values.apply_rows(calibration.betting, samples, tolerance=0.12)
  for value, sample in zip(found, samples, strict=True):
    assert value == pytest.approx(calibration.betting(sample, tolerance=0.12))


@pytest.mark.parametrize('tolerance', [0.05, 0.02])
def test_signed_losses_take_far_fewer_examples(tolerance):
  """Zero differences, mapped to [0, 1], are 1/2 everywhere."""
  arguments = dict(power=None, loss_range=(-1, 1))
  by_mean = calibration.required_examples(tolerance, 0.05, **arguments)
  by_bets = calibration.required_examples(
    tolerance, 0.05, p_value=calibration.betting, **arguments
  )
  assert by_bets * 10 < by_mean


def test_certificates_name_the_seed(tmp_path):
  losses = np.random.default_rng(3).beta(1, 30, size=(400, 2))
  certificate = calibration.calibrate(
    losses, [0.9, 0.5], p_value=calibration.Betting(seed=7)
  )
  assert certificate.p_value == 'betting(seed=7)'
  certificate.save(tmp_path / 'c.json')
  assert calibration.Certificate.load(tmp_path / 'c.json') == certificate


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'seed': -1}, 'seed -1 must be a whole number at least 0'),
    ({'seed': 0.5}, 'seed 0.5 must be a whole number'),
    ({'level': 1.0}, 'level must be in'),
    ({'level': math.nan}, 'level must be in'),
  ],
)
def test_bad_bets_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    calibration.Betting(**arguments)


def test_bad_losses_are_named():
  with pytest.raises(ValueError, match=r'loss 1 is 1\.5'):
    calibration.betting([0.0, 1.5], tolerance=0.1)
  with pytest.raises(ValueError, match='tolerance'):
    calibration.betting([0.0], tolerance=1.0)

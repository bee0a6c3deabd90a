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
    ({'seed': -1}, 'must not be negative'),
    ({'seed': 0.5}, 'must be an integer'),
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

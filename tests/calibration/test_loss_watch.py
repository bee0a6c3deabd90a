"""Watching a mean: wealth by hand, restarts, false alarms, what is found."""

import math

import numpy as np
import pytest

from calm_jax import calibration, records
from calm_jax.calibration import LossWatch

STREAMS, LENGTH = 1500, 300


def literal_evidence(losses, *, tolerance, guarantee):
  """The equations of the docstring: every bet from every beginning."""

  def left(number):
    return math.log(2) / math.log(number + 2) if guarantee == 'ever' else 0.0

  found = []
  for end in range(1, len(losses) + 1):
    mean = 0.0
    for halved in range(8):
      bet = 0.99 / tolerance / 2**halved
      for start in range(1, end + 1):
        stake = left(start - 1) - left(start) if guarantee == 'ever' else 1.0
        factors = [1 + bet * (x - tolerance) for x in losses[start - 1 : end]]
        mean += stake * math.prod(factors) / 8
    found.append(math.log(left(end) + mean))
  return found


@pytest.mark.parametrize('guarantee', ['ever', 'on_average'])
def test_is_its_equations(guarantee):
  losses = np.random.default_rng(0).beta(0.5, 4, size=12)
  watch = LossWatch(tolerance=0.1, guarantee=guarantee)
  expected = literal_evidence(losses, tolerance=0.1, guarantee=guarantee)
  np.testing.assert_allclose(watch.log_evidence(losses), expected, atol=1e-9)
  state = watch.update(records.WatchState(), losses)
  assert state.log_evidence == pytest.approx(expected[-1])
  assert state.greatest == pytest.approx(max(0, *expected))
  assert state.mean == pytest.approx(losses.mean())
  assert state.recent == pytest.approx(losses.mean())


def test_losses_of_any_range_are_those_of_zero_to_one():
  losses = np.random.default_rng(1).uniform(-0.5, 1, size=40)
  signed = LossWatch(tolerance=0.2, loss_range=(-1.0, 1.0))
  mapped = LossWatch(tolerance=0.6)
  np.testing.assert_allclose(
    signed.log_evidence(losses), mapped.log_evidence((losses + 1) / 2)
  )


def test_a_state_goes_on_as_if_nothing_had_been_between():
  losses = np.random.default_rng(2).random(30)
  watch = LossWatch(tolerance=0.3)
  whole = watch.update(records.WatchState(), losses)
  state = records.WatchState()
  for part in np.split(losses, [7, 7, 19]):
    state = watch.update(state, part)
    stored = records.to_jsonable(state)
    state = records.from_jsonable(records.WatchState, stored)
  assert state == whole
  assert whole.alarm_at is not None and whole.alarm_at < 30


def test_the_recent_mean_is_that_of_the_latest_losses():
  watch = LossWatch(tolerance=0.3)
  state = watch.update(records.WatchState(), [0.0] * 300 + [0.4] * 300)
  assert state.mean == pytest.approx(0.2)
  assert state.recent == pytest.approx(0.4, abs=0.002)


def draws(law, mean, seed, shape=(STREAMS, LENGTH)):
  rng = np.random.default_rng(seed)
  if law == 'binary':
    return (rng.random(shape) < mean).astype(float)
  return rng.beta(0.5, 0.5 * (1 - mean) / mean, size=shape)


def alarms(watch, losses):
  return watch.log_evidence(losses) >= math.log(watch.bound)


@pytest.mark.parametrize('law', ['binary', 'beta'])
def test_false_alarms_are_as_rare_as_is_said(law):
  """At the boundary, where they are likeliest; and the check can fail."""
  error = 0.05
  most = error + 3 * math.sqrt(error * (1 - error) / STREAMS)
  losses = draws(law, 0.1, seed=3)
  watch = LossWatch(tolerance=0.1, error_rate=error)
  assert alarms(watch, losses).any(axis=1).mean() <= most
  wrong = LossWatch(tolerance=0.085, error_rate=error)
  assert alarms(wrong, losses).any(axis=1).mean() > most


def test_false_alarms_are_rare_whatever_the_past_decides():
  """Losses that depend on each other, each with a tolerable mean given those
  before: larger after large ones, as where topics come in runs."""
  rng = np.random.default_rng(4)
  losses = np.empty((STREAMS, LENGTH))
  spread = np.ones(STREAMS)
  for place in range(LENGTH):
    # Of mean 0.1 each: all or nothing after a large one, else nearly constant.
    large = rng.random(STREAMS) < 0.1
    losses[:, place] = np.where(spread, large, 0.1)
    spread = rng.random(STREAMS) < np.where(losses[:, place] > 0.5, 0.9, 0.3)
  watch = LossWatch(tolerance=0.1, error_rate=0.05)
  most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / STREAMS)
  assert alarms(watch, losses).any(axis=1).mean() <= most


def test_an_average_is_kept():
  """Mean losses before a false alarm; a stream without one counts as short."""
  watch = LossWatch(tolerance=0.1, error_rate=0.02, guarantee='on_average')
  raised = alarms(watch, draws('binary', 0.1, seed=5))
  first = np.where(raised.any(axis=1), raised.argmax(axis=1) + 1, LENGTH)
  error = first.std() / math.sqrt(STREAMS)
  assert first.mean() >= watch.bound - 3 * error


@pytest.mark.parametrize(
  'guarantee, error', [('ever', 0.01), ('on_average', 1e-4)]
)
def test_a_jump_is_found_soon_also_after_a_long_time(guarantee, error):
  good = draws('beta', 0.05, seed=6, shape=(40, 600))
  bad = draws('beta', 0.3, seed=7, shape=(40, 200))
  watch = LossWatch(tolerance=0.1, error_rate=error, guarantee=guarantee)
  raised = alarms(watch, np.concatenate([good, bad], axis=1))
  assert not raised[:, :600].any()
  delays = raised.argmax(axis=1) - 599
  assert raised.any(axis=1).all() and np.median(delays) < 40


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(tolerance=0.0), 'strictly between 0 and 1'),
    (dict(tolerance=0.1, error_rate=0.0), r'error_rate must be in \(0, 1\)'),
    (dict(tolerance=0.1, guarantee='always'), "guarantee is 'always'; use"),
  ],
)
def test_numbers_that_are_none_are_refused(given, message):
  with pytest.raises(ValueError, match=message):
    calibration.LossWatch(**given)


@pytest.mark.parametrize('loss', [1.2, -0.1, math.nan])
def test_losses_outside_their_range_are_refused(loss):
  watch, state = LossWatch(tolerance=0.1), records.WatchState()
  with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
    watch.update(state, [0.0, loss])

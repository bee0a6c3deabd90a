"""Is the mean loss still tolerable? Watched loss by loss, for ever.

A certificate speaks of inputs like those it was made from. What is served later
may be otherwise, from one day on or little by little. Here somebody bets, loss
after loss, that the mean is above the tolerance: as long as it is not, no bet
is favourable, and great wealth is evidence that it is.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from calm_jax import records
from calm_jax.calibration import bets, inputs

GUARANTEES = ('ever', 'on_average')
# Bets that are played side by side, each half of the one before. The last one
# grows fastest on losses of 0 and 1 whose mean is above alpha by a 128th of
# what is left up to 1; more would be for means still nearer to it.
_NUM_BETS = 8
# Losses that the recent mean is of, for readers; bets do not look at it.
_RECENT = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWatch:
  """Bets, loss after loss, on the mean loss being above the tolerance.

  Losses are mapped to x_1, x_2, .. in [0, 1] and the tolerance to alpha, in
  (0, 1). The null hypothesis is that the mean is tolerable all the time,

    E[x_t | x_1, .., x_{t-1}] <= alpha for every t,

  whatever else changes: losses need be neither independent nor of one law. A
  bet b that is played from loss s on has the wealth

    W_{s,t}(b) = prod_{s <= i <= t} (1 + b (x_i - alpha)),  0 <= b < 1 / alpha,

  which under the null is a nonnegative supermartingale. Eight bets, each half
  of the one before, b = 0.99 / alpha, .., 0.99 / (128 alpha), are played from
  every loss on, so that a long good time before a change costs little:

    A_t(b) = sum_{s <= t} p_s W_{s,t}(b)
           = (A_{t-1}(b) + p_t) (1 + b (x_t - alpha)),
    M_t = r_t + mean over b of A_t(b),

  and the alarm is raised as soon as M_t >= 1 / error_rate. There are two ways
  to share out money between the beginnings s:

  - `guarantee='ever'`, the default: p_s = r_{s-1} - r_s with r_s = ln 2 /
    ln(s + 2), the part that is not yet at stake, so that M_0 = 1. M is a
    nonnegative supermartingale (an e-process), and by Ville's inequality

      P(a false alarm, ever) <= error_rate,

    which is what a fallback that somebody has to undo by hand should have. A
    change after n losses is found later than one at the beginning by about
    ln(n (ln n)^2) / g losses, g being the rate at which wealth grows.
  - `guarantee='on_average'`: p_s = 1 and r = 0. M_t - t is a supermartingale
    (M is an e-detector, of Shiryaev and Roberts' form), so that

      E[losses before a false alarm] >= 1 / error_rate.

    A change is found about as soon whenever it comes; but false alarms come for
    certain, and the error rate is one per loss: 0.0001 for one in 10,000.

  The test by betting of a risk that is watched under unknown shifts is that of
  Timans, Verma, Nalisnick and Naesseth (arXiv 2506.16416), whose bets start
  once; wealth of bounded means: Waudby-Smith and Ramdas (arXiv 2010.09686),
  Section 4. Sums over beginnings, and what they guarantee: Shin, Ramdas and
  Rinaldo, "E-detectors" (arXiv 2203.03532).

  Attributes:
    tolerance: what the mean loss may be at most, in the units of the losses and
      strictly inside their range.
    error_rate: of false alarms, in (0, 1), in the sense of the guarantee.
    loss_range: the smallest and the largest value that a loss can have.
    guarantee: 'ever' or 'on_average'.

  >>> watch, state = LossWatch(tolerance=0.1), records.WatchState()
  >>> watch.update(state, [0.0, 0.1] * 500).alarm_at is None
  True
  >>> watch.update(state, [1.0] * 5).alarm_at
  4
  """

  tolerance: float
  error_rate: float = 0.01
  loss_range: tuple[float, float] = (0.0, 1.0)
  guarantee: str = 'ever'

  def __post_init__(self):
    """Raises ValueError for numbers outside their range."""
    inputs.check_range(self.loss_range, self.tolerance)
    if not 0 < self.error_rate < 1:
      raise ValueError(
        f'error_rate must be in (0, 1), not {self.error_rate}; 0.01 means that '
        + (
          'a false alarm is ever raised with probability 1 % at most'
          if self.guarantee == 'ever'
          else 'at least 100 losses come before a false alarm, on average'
        )
      )
    if self.guarantee not in GUARANTEES:
      raise ValueError(
        f'guarantee is {self.guarantee!r}; use one of {GUARANTEES}'
      )

  @property
  def bound(self) -> float:
    """What M_t must reach for an alarm."""
    return 1 / self.error_rate

  def update(
    self, state: records.WatchState, losses: ArrayLike
  ) -> records.WatchState:
    """Returns the state after further losses.

    Args:
      state: before them; `WatchState()` at the beginning.
      losses: [N], in loss_range, in the order in which they came.

    Raises:
      ValueError: naming a loss outside its range.
    """
    for gain, loss in zip(
      self._gains(losses), np.ravel(losses).tolist(), strict=True
    ):
      state = self._after(state, gain, loss)
    return state

  def log_evidence(self, losses: ArrayLike) -> np.ndarray:
    """Returns ln M_1, .., ln M_N, for simulations.

    Args:
      losses: [..., N], in loss_range.

    Raises:
      ValueError: naming a loss outside its range.
    """
    gains = self._gains(losses)
    log_wealths = np.full((*gains.shape[:-1], _NUM_BETS), -np.inf)
    found = np.empty(gains.shape)
    for place in range(gains.shape[-1]):
      log_wealths = self._step(log_wealths, gains[..., place], place + 1)
      found[..., place] = self._evidence(log_wealths, place + 1)
    return found

  def _after(self, state, gain: float, loss: float) -> records.WatchState:
    """Returns the state after one more loss."""
    count = state.count + 1
    before = np.array(state.log_wealths or [-np.inf] * _NUM_BETS)
    log_wealths = self._step(before, np.asarray(gain), count)
    evidence = float(self._evidence(log_wealths, count))
    alarm_at = state.alarm_at
    if alarm_at is None and evidence >= math.log(self.bound):
      alarm_at = count
    return records.WatchState(
      count=count,
      total=state.total + loss,
      recent=state.recent + (loss - state.recent) / min(count, _RECENT),
      log_wealths=tuple(log_wealths.tolist()),
      log_evidence=evidence,
      greatest=max(state.greatest, evidence),
      alarm_at=alarm_at,
    )

  def _gains(self, losses: ArrayLike) -> np.ndarray:
    """Returns x - alpha, [..., N]."""
    losses = np.asarray(losses, np.float64)
    low, high = self.loss_range
    bad = ~(
      (losses >= low - inputs.ROUNDING) & (losses <= high + inputs.ROUNDING)
    )
    if bad.any():
      raise ValueError(
        f'loss {losses[bad].flat[0]} is outside [{low:g}, {high:g}], what the '
        'watched loss can be; give the loss of the certificate, or its range'
      )
    return (np.clip(losses, low, high) - self.tolerance) / (high - low)

  def _step(
    self, log_wealths: np.ndarray, gains: np.ndarray, number: int
  ) -> np.ndarray:
    """Returns ln A_t [..., bets] from those before and the t-th gain [...]."""
    low, high = self.loss_range
    greatest = bets.SHARE * (high - low) / (self.tolerance - low)
    sizes = greatest / 2.0 ** np.arange(_NUM_BETS)
    joined = np.logaddexp(log_wealths, math.log(self._put_at_stake(number)))
    return joined + np.log1p(sizes * gains[..., np.newaxis])

  def _put_at_stake(self, number: int) -> float:
    """Returns p_t."""
    if self.guarantee == 'on_average':
      return 1.0
    return _left(number - 1) - _left(number)

  def _evidence(self, log_wealths: np.ndarray, number: int) -> np.ndarray:
    """Returns ln M_t [...]."""
    mixed = np.logaddexp.reduce(log_wealths, axis=-1) - math.log(_NUM_BETS)
    if self.guarantee == 'on_average':
      return mixed
    return np.logaddexp(mixed, math.log(_left(number)))


def _left(number: int) -> float:
  """Returns r_s, the part of the money that is not at stake after s losses."""
  return math.log(2) / math.log(number + 2)

"""Bets on losses that rows without references help to tell.

The textual distance x needs no references, so that it may be known of many more
rows than the loss y that does. Each row with references is given K others
without: with a slope c that only earlier rows have told,

  z = y - c (x - mean of the others' x)

has the expectation of y and, where x tells much of y, less spread
(prediction-powered inference, arXiv 2301.09633; for certificates arXiv
2412.11174). Here z is bet on in the place of y, by the bets of
`calibration.Betting`, inside a fixed sequence: as valid, for z is at most c
above what y can be, and the bets are that much smaller.
"""

import dataclasses

import numpy as np

from calm_jax.calibration import bets

# Of the losses that need references.
RANGES = {'risk': (0.0, 1.0), 'signed': (-1.0, 1.0)}
_SHARE = 0.99
# Squares of x that count as seen beforehand, so that the first slopes are flat.
_PRIOR_SQUARES = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """How tables are drawn from.

  Attributes:
    others: K, rows without references for each with them.
    num_draws: calibrations per number.
    error_rate: in (0, 1).
    seed: of the draws.
  """

  others: int = 10
  num_draws: int = 300
  error_rate: float = 0.05
  seed: int = 0

  def certified(
    self,
    textual: np.ndarray,
    losses: np.ndarray,
    tolerance: float,
    loss_range: tuple[float, float],
    number: int,
    slope: str | None,
  ) -> float:
    """Returns how many settings are certified on the mean.

    Args:
      textual: [N, J], known without references.
      losses: [N, J], known with them.
      tolerance: in their units.
      loss_range: of the losses.
      number: n, rows with references.
      slope: 'learnt' or 'known'; None looks at no others.
    """
    rng = np.random.default_rng(self.seed)
    rows = rng.integers(len(losses), size=(self.num_draws, number))
    certified = np.zeros(self.num_draws)
    alive = np.arange(self.num_draws)
    for x, y in zip(textual.T, losses.T, strict=True):
      slopes = _slopes(x, y, rows[alive], slope)
      gains = tolerance - y[rows[alive]]
      if slope is not None:
        picked = rng.integers(len(x), size=(*rows[alive].shape, self.others))
        gains += slopes * (x[rows[alive]] - x[picked].mean(axis=-1))
      wealth = _log_wealth(
        gains, slopes, tolerance, loss_range, self.error_rate, number
      )
      won = np.exp(-np.maximum(wealth.max(axis=1), 0)) <= self.error_rate
      alive = alive[won]
      certified[alive] += 1
      if not alive.size:
        break
    return float(certified.mean())


def _slopes(x, y, rows: np.ndarray, slope: str | None) -> np.ndarray:
  """Returns c for every row, in [0, 1], by what was seen before it."""
  if slope is None:
    return np.zeros(rows.shape)
  if slope == 'known':
    spread = max(float(x.var()), 1e-12)
    known = ((x - x.mean()) * (y - y.mean())).mean() / spread
    return np.full(rows.shape, np.clip(known, 0.0, 1.0))
  numbers = np.maximum(np.arange(rows.shape[1]), 1)
  x, y = x[rows], y[rows]
  covered = _sums_before(x * y) - _sums_before(x) * _sums_before(y) / numbers
  spread = _sums_before(x * x) - _sums_before(x) ** 2 / numbers
  return np.clip(covered / (spread + _PRIOR_SQUARES), 0.0, 1.0)


def _sums_before(values: np.ndarray) -> np.ndarray:
  sums = np.cumsum(values[:, :-1], axis=1)
  return np.pad(sums, ((0, 0), (1, 0)))


def _log_wealth(gains, slopes, tolerance, loss_range, level, number):
  """Returns the path of the wealth [M, n], by the bets of `Betting`.

  A gain is at least tolerance - high - c; divided by what that is more than
  tolerance - high, the same bets are as safe.
  """
  low, high = loss_range
  mapped = (tolerance - low) / (high - low)
  room = (high - tolerance) / (high - tolerance + slopes)
  return bets.log_wealth(
    gains * room / (high - low),
    expected=mapped * (1 - mapped),
    most=_SHARE / (1 - mapped),
    level=level,
    number=number,
  )

"""A p-value from bets on the losses: tighter where their variance is small.

Hoeffding's and Bentkus's inequalities know the mean loss and nothing else. A
player who bets that every next loss is below the tolerance learns the variance
on the way: when no game is favourable, wealth grows twentyfold with probability
at most 1/20, so that great wealth is evidence that the risk is tolerable. Twin
of p_values.py, with the same signature; here the order of the losses matters.
"""

import dataclasses
import itertools
import math
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from calm_jax import checks
from calm_jax.calibration import p_values

# The share of the greatest bet that is ever made, so that no loss ends the
# game: a sum of money is kept even at a loss of 1.
SHARE = 0.99
# How much the variance expected beforehand, that of losses of 0 and 1 with the
# mean at the tolerance, counts: as much as squares that add up to this. More
# helps where large losses are rare, as the first of them then costs less, and
# hurts signed ones: at 0.4, 1 and 2 it takes about 1,560, 1,330 and 1,260
# losses of 0 and 1 (tolerance 0.02, risk 0.01, 80 % power) and 163, 184 and 221
# signed differences of zero (tolerance 0.02).
_PRIOR_SQUARES = 1.0
# How often the bets are aimed anew: 1,610 instead of those 1,330 if once, 1,320
# if before every loss.
_MOST_AIMS = 32


@dataclasses.dataclass(frozen=True)
class Betting:
  """Bets, loss after loss, against the risk being above the tolerance.

  The losses x_1..x_N are put into an order that the seed alone decides. From
  wealth W_0 = 1 and a bet b_i that depends on x_1..x_{i-1} only,

    W_i = W_{i-1} (1 + b_i (tolerance - x_i)),
    0 <= b_i <= 0.99 / (1 - tolerance),
    p = min(1, 1 / max_i W_i).

  If E[loss] >= tolerance no factor has an expectation above 1 and none is
  negative, so W is a nonnegative supermartingale and P(max W >= 1 / u) <= u by
  Ville's inequality: p is super-uniform, whatever the bets. Waudby-Smith and
  Ramdas (arXiv 2010.09686), "Estimating means of bounded random variables by
  betting", Section 4 (the capital process, one-sided) and Section 3 (the
  predictable plug-in bets). The bets themselves are

    b_i = min(sqrt(2 (G - ln W_a) / ((N - a) v_{i-1})), 0.99 / (1 - tolerance)),
    v_i = (1 + sum_{j <= i} (x_j - tolerance)^2) / (1 / v_0 + i),
    v_0 = tolerance (1 - tolerance).

  That is their bet for a sample of known size, which would have G = ln(1 /
  level) and a = 0, aimed anew 32 times: a is the number of losses before the
  latest aim, and the goal G is the next multiple of ln(1 / level) that no
  ln W_i has reached by then. Aiming anew is the idea of Voracek and Orabona
  (STaR-Bets, arXiv 2505.22422). Measured against their bet as it was, Kelly
  bets and mixtures of constant bets this takes the fewest examples: for 80 %
  power at tolerance 0.1 and risk 0.05 about 240 losses of 0 and 1 instead of
  340 (and 274 by Hoeffding-Bentkus, 191 by exact_binomial); at zero losses as
  few as any.

  Unlike the p-values of the mean alone it may fall below 1 where the mean loss
  reaches the tolerance, which is as it should be. The losses must be
  independent draws, as the guarantee of `calibrate` has it.

  Attributes:
    seed: of the order. To be chosen before the losses are seen, and recorded:
      it is part of the name.
    level: the p-value that the bets aim at, in (0, 1). Valid whatever it is;
      fewest examples are needed at an error rate of about this, so give
      error_rate / k to a procedure that shares it between k starts or settings.

  >>> p_value = Betting(seed=0)
  >>> p_value.name
  'betting(seed=0)'
  >>> p_value([0.0] * 28, tolerance=0.1) < p_value([0.0] * 27, tolerance=0.1)
  True
  >>> round(p_value([0.0] * 29, tolerance=0.1), 4)  # 0.9 ** 29 is 0.0471
  0.0485
  >>> round(p_value([0.5] * 200, tolerance=0.51), 4)  # 0 in (-1, 1), mapped
  0.0424
  """

  seed: int = 0
  level: float = 0.05
  depends_on_order: ClassVar[bool] = True

  def __post_init__(self):
    """Raises ValueError for a seed or level that is none."""
    checks.check_whole(self.seed, 'seed', low=0)
    if not 0 < self.level < 1:
      raise ValueError(
        f'level must be in (0, 1), not {self.level}; give the error rate'
      )

  @property
  def name(self) -> str:
    """How certificates name it, with what its p-values depend on."""
    level = '' if self.level == 0.05 else f', level={self.level!r}'
    return f'betting(seed={self.seed}{level})'

  def __call__(self, losses: ArrayLike, *, tolerance: float) -> float:
    """Returns the p-value, in [0, 1].

    Args:
      losses: [N], one loss per example, in [0, 1].
      tolerance: the null hypothesis is E[loss] > tolerance; in (0, 1).

    Raises:
      ValueError: for losses or a tolerance outside their range.
    """
    sample = p_values.check_losses(losses, tolerance)
    return float(self.batch(sample[np.newaxis], tolerance=tolerance)[0])

  def batch(self, samples: np.ndarray, *, tolerance: float) -> np.ndarray:
    """Returns the p-values [M] of M samples [M, N], as if called on each.

    Args:
      samples: [M, N], in [0, 1].
      tolerance: in (0, 1).

    Raises:
      ValueError: for losses or a tolerance outside their range.
    """
    samples = np.asarray(samples, np.float64)
    number = samples.shape[-1]
    ordered = samples[..., self.order(number)]
    path = self.path(ordered, tolerance=tolerance, number=number)
    return np.exp(-np.maximum(path.max(axis=1), 0.0))

  def order(self, number: int) -> np.ndarray:
    """Returns the order in which N losses are bet on, int [N]."""
    return np.random.default_rng(self.seed).permutation(number)

  def path(
    self, samples: np.ndarray, *, tolerance: float, number: int
  ) -> np.ndarray:
    """Returns the logarithm of the wealth after every loss, [M, m].

    What is known of it when m of N losses are: a supermartingale's, so that
    whoever stops where it has reached ln(1 / error_rate), as `AnytimeSequence`
    does, is wrong at most at that rate.

    Args:
      samples: [M, m], in [0, 1]: the first m losses in their `order`.
      tolerance: in (0, 1).
      number: N, how many losses there are at most; m <= N.

    Raises:
      ValueError: for losses or a tolerance outside their range, or more than N.

    >>> path = Betting().path(np.zeros((1, 29)), tolerance=0.1, number=29)
    >>> round(float(np.exp(-path[0, -1])), 4)
    0.0485
    """
    samples = np.asarray(samples, np.float64)
    p_values.check_losses(samples.ravel(), tolerance)
    if samples.ndim != 2 or samples.shape[1] > number:
      raise ValueError(
        f'samples must be [M, m] with at most {number} losses each, not '
        f'{samples.shape}'
      )
    return log_wealth(
      tolerance - samples,
      expected=tolerance * (1 - tolerance),
      most=SHARE / (1 - tolerance),
      level=self.level,
      number=number,
    )


def betting(losses: ArrayLike, *, tolerance: float) -> float:
  """Bets against the risk being above the tolerance: `Betting(seed=0)`.

  Args:
    losses: [N], one loss per example, in [0, 1].
    tolerance: the null hypothesis is E[loss] > tolerance; in (0, 1).

  Returns:
    The p-value, in [0, 1].

  Raises:
    ValueError: for losses or a tolerance outside their range.

  >>> betting([0.0] * 29, tolerance=0.1) == Betting()([0.0] * 29, tolerance=0.1)
  True
  """
  return Betting()(losses, tolerance=tolerance)


# What certificates and simulations ask a p-value for; a gin file can name a
# function, but not an object.
vars(betting).update(
  name=Betting().name,
  batch=Betting().batch,
  order=Betting().order,
  path=Betting().path,
  depends_on_order=True,
)


def log_wealth(
  gains: np.ndarray,
  *,
  expected: float,
  most: float,
  level: float,
  number: int,
) -> np.ndarray:
  """Returns ln W_1, .., ln W_m of every row of gains, by the bets of `Betting`.

  Args:
    gains: [M, m], what a bet of 1 wins: of independent draws whose expectation
      is at most 0 if the risk is not tolerable, and above -1 / most.
    expected: v_0, the variance expected before any gain is seen.
    most: the greatest bet.
    level: what the bets aim at, in (0, 1).
    number: N >= m, how many gains there will be at most.

  Returns:
    float64 [M, m]. No entry depends on a later gain.
  """
  rows, seen = gains.shape
  sizes = np.sqrt(2 / _variances_before(gains, expected))
  wealth, greatest = np.zeros(rows), np.zeros(rows)
  path = np.zeros((rows, seen))
  step = math.log(1 / level)
  aims = np.linspace(0, number, min(number, _MOST_AIMS) + 1).astype(int)
  for start, end in itertools.pairwise(aims):
    if start >= seen:
      break
    # A goal that is reached but for rounding is reached.
    goal = step * (np.floor(greatest / step + 1e-9) + 1)
    aim = np.sqrt((goal - wealth) / (number - start))
    bets = np.minimum(sizes[:, start:end] * aim[:, np.newaxis], most)
    steps = np.log1p(bets * gains[:, start:end])
    part = wealth[:, np.newaxis] + np.cumsum(steps, axis=1)
    path[:, start:end] = part
    greatest = np.maximum(greatest, part.max(axis=1))
    wealth = part[:, -1]
  return path


def _variances_before(gains: np.ndarray, expected: float) -> np.ndarray:
  """Returns v_0 .. v_{N-1} for every row: what each bet may know."""
  squares = np.cumsum(gains[:, :-1] ** 2, axis=1)
  squares = np.pad(squares, ((0, 0), (1, 0))) + _PRIOR_SQUARES
  return squares / (_PRIOR_SQUARES / expected + np.arange(gains.shape[1]))

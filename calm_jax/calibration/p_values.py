"""P-values for "the expected loss is above the tolerance".

Each function takes the losses of N examples under one setting, numbers in
[0, 1], and returns a p-value of the null hypothesis E[loss] > tolerance: a
number that is super-uniform when the null is true, for every N and every law of
the loss. The losses themselves are asked for, not their mean, so that
inequalities which look at the variance or at the order of the losses have the
same signature; the one that does is `betting`, in bets.py.
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from calm_jax.calibration import inputs


class PValue(Protocol):
  """A function of losses that tests "their expectation is above the tolerance".

  It may have attributes: `name` (str: how certificates name it, parameters
  included), `batch` (of many samples at once: see `apply_rows`),
  `depends_on_order` and `for_binary_losses` (bool: what losses are made up for
  it where some are needed).
  """

  def __call__(self, losses: np.ndarray, /, *, tolerance: float) -> float:
    """Returns a p-value in [0, 1], super-uniform where E[loss] > tolerance.

    Args:
      losses: [N], in [0, 1].
      tolerance: in (0, 1).
    """
    ...


def name_of(p_value: PValue) -> str:
  """Returns how certificates name a p-value.

  >>> name_of(hoeffding)
  'hoeffding'
  """
  for attribute in ('name', '__name__'):
    if hasattr(p_value, attribute):
      return str(getattr(p_value, attribute))
  return repr(p_value)


def hoeffding(losses: ArrayLike, *, tolerance: float) -> float:
  """Bounds the mean by Hoeffding's inequality, in its simple form.

  p = exp(-2 N max(0, tolerance - R)^2), R the mean loss. Hoeffding
  (1963), Theorem 2; the p-value in the text of CALM (arXiv 2207.07061, Section
  4, the calibration procedure).

  Args:
    losses: [N], one loss per example, in [0, 1].
    tolerance: the null hypothesis is E[loss] > tolerance; in (0, 1).

  Returns:
    The p-value, in [0, 1]; 1 where the mean loss reaches the tolerance.

  Raises:
    ValueError: for losses or a tolerance outside their range.

  >>> round(hoeffding([0.0] * 100, tolerance=0.1), 6)  # exp(-2)
  0.135335
  >>> hoeffding([1.0, 0.0], tolerance=0.1)
  1.0
  """
  return float(hoeffding_of_total(*_total_loss(losses, tolerance), tolerance))


def hoeffding_of_total(
  total: ArrayLike, number: ArrayLike, tolerance: ArrayLike
) -> np.ndarray:
  """Returns `hoeffding` of samples of which the sum and the size are known.

  Args:
    total: the sum of the losses, in [0, number]; any shape that broadcasts.
    number: N >= 1.
    tolerance: in (0, 1).

  Returns:
    float64, the p-values, in [0, 1].
  """
  total, number = np.asarray(total), np.asarray(number)
  gap = np.maximum(0.0, np.asarray(tolerance) - total / number)
  return np.exp(-2 * number * gap**2)


def bentkus(losses: ArrayLike, *, tolerance: float) -> float:
  """Bounds the mean by Bentkus's inequality: e times a binomial tail.

  p = min(1, e P(Binomial(N, tolerance) <= ceil(N R))), R the mean loss. Bentkus
  (2004), in the form of Bates et al. (arXiv 2101.02703, Section 3.1, "Bentkus
  inequality"). Tight for losses that are nearly 0 or 1.

  Args:
    losses: [N], one loss per example, in [0, 1].
    tolerance: the null hypothesis is E[loss] > tolerance; in (0, 1).

  Returns:
    The p-value, in [0, 1]; 1 where the mean loss reaches the tolerance.

  Raises:
    ValueError: for losses or a tolerance outside their range.

  >>> round(bentkus([0.0] * 100, tolerance=0.1), 9)  # e * 0.9 ** 100
  7.2201e-05
  """
  return float(bentkus_of_total(*_total_loss(losses, tolerance), tolerance))


def bentkus_of_total(
  total: ArrayLike, number: ArrayLike, tolerance: ArrayLike
) -> np.ndarray:
  """Returns `bentkus` of sums and sizes; see `hoeffding_of_total`."""
  total, number = np.asarray(total), np.asarray(number)
  tail = special.bdtr(_ceil(total), number, tolerance)
  return np.where(
    total >= number * tolerance, 1.0, np.minimum(1.0, math.e * tail)
  )


def hoeffding_bentkus(losses: ArrayLike, *, tolerance: float) -> float:
  """Takes the smaller of the tight Hoeffding and the Bentkus p-value.

  p = min(exp(-N h1(min(R, tolerance), tolerance)),
          e P(Binomial(N, tolerance) <= ceil(N R))),
  h1(a, b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)) with 0 ln 0 = 0. No
  correction is due for taking the minimum: both bound the distribution function
  of the same statistic, R, so their minimum does too.

  Angelopoulos et al. (Learn then Test, arXiv 2110.01052), "Hoeffding-Bentkus
  inequality p-values"; Bates et al. (arXiv 2101.02703), Section 3.1; what CALM
  uses in its experiments.

  Args:
    losses: [N], one loss per example, in [0, 1].
    tolerance: the null hypothesis is E[loss] > tolerance; in (0, 1).

  Returns:
    The p-value, in [0, 1]; 1 where the mean loss reaches the tolerance.

  Raises:
    ValueError: for losses or a tolerance outside their range.

  >>> round(hoeffding_bentkus([0.0] * 100, tolerance=0.1), 9)  # 0.9 ** 100
  2.6561e-05
  >>> hoeffding_bentkus([0.1, 0.3], tolerance=0.1)
  1.0
  """
  return float(
    hoeffding_bentkus_of_total(*_total_loss(losses, tolerance), tolerance)
  )


def hoeffding_bentkus_of_total(
  total: ArrayLike, number: ArrayLike, tolerance: ArrayLike
) -> np.ndarray:
  """Returns `hoeffding_bentkus` of sums and sizes; see `hoeffding_of_total`."""
  total, number = np.asarray(total), np.asarray(number)
  risk = np.minimum(total / number, tolerance)
  divergence = special.rel_entr(risk, tolerance)
  divergence += special.rel_entr(1 - risk, 1 - np.asarray(tolerance))
  # Never below 0, but just below the tolerance its two terms cancel, and what
  # rounding leaves of them would make a p-value above 1.
  tight = np.exp(-number * np.maximum(divergence, 0.0))
  return np.minimum(tight, bentkus_of_total(total, number, tolerance))


def exact_binomial(losses: ArrayLike, *, tolerance: float) -> float:
  """Counts losses that are 0 or 1, whose law is known: no bound is needed.

  p = P(Binomial(N, tolerance) <= sum of the losses). The exact test of a
  proportion (Clopper and Pearson, 1934), for a loss such as "the output is not
  the same"; Learn then Test (arXiv 2110.01052) names it for binary losses. No
  p-value of the count alone is smaller.

  Args:
    losses: [N], one loss per example, each 0 or 1.
    tolerance: the null hypothesis is E[loss] > tolerance; in (0, 1).

  Returns:
    The p-value, in [0, 1].

  Raises:
    ValueError: for losses other than 0 and 1 or a tolerance outside its range.

  >>> round(exact_binomial([0.0] * 100, tolerance=0.1), 9)  # 0.9 ** 100
  2.6561e-05
  >>> round(exact_binomial([1.0, 0.0], tolerance=0.75), 6)  # 1 - 0.75 ** 2
  0.4375
  """
  sample = check_losses(losses, tolerance)
  # As far from a whole number as mapping by a range may take 0 and 1.
  bad = np.flatnonzero(np.abs(sample - np.round(sample)) > inputs.ROUNDING)
  if bad.size:
    raise ValueError(
      f'exact_binomial is for losses of 0 and 1, but loss {bad[0]} is '
      f'{sample[bad[0]]}; use hoeffding_bentkus or betting for losses between '
      'them'
    )
  count = np.round(sample).sum()
  return float(exact_binomial_of_total(count, sample.size, tolerance))


def exact_binomial_of_total(
  total: ArrayLike, number: ArrayLike, tolerance: ArrayLike
) -> np.ndarray:
  """Returns `exact_binomial` of whole sums; see `hoeffding_of_total`."""
  return np.minimum(1.0, special.bdtr(total, number, tolerance))


# For who makes up losses: an attribute survives the wrappers that gin puts
# around functions.
vars(exact_binomial).update(for_binary_losses=True)


def apply_rows(
  p_value: PValue, samples: np.ndarray, *, tolerance: float
) -> np.ndarray:
  """Returns the p-value of every row: for simulations of many calibrations.

  Args:
    p_value: if it has a method `batch` that takes many samples at once, that is
      used.
    samples: [M, N], M samples of N losses.
    tolerance: in (0, 1).

  Returns:
    float [M], in [0, 1].

  Raises:
    ValueError: for losses or a tolerance outside their range.

  >>> apply_rows(hoeffding, np.zeros((2, 100)), tolerance=0.1).round(6)
  array([0.135335, 0.135335])
  """
  batch = getattr(p_value, 'batch', None)
  if batch is not None:
    return clamp_rounding(batch(samples, tolerance=tolerance), p_value)
  tests = [p_value(sample, tolerance=tolerance) for sample in samples]
  return clamp_rounding(np.array(tests), p_value)


def clamp_rounding(tests: ArrayLike, p_value: PValue) -> np.ndarray:
  """Returns what a p-value gave, within [0, 1] where rounding left it.

  Args:
    tests: any shape.
    p_value: names it in the error.

  Raises:
    ValueError: if one is further from [0, 1] than rounding takes it, or NaN.

  >>> clamp_rounding([0.5, 1 + 1e-15, -1e-18], hoeffding)
  array([0.5, 1. , 0. ])
  """
  tests = np.asarray(tests, np.float64)
  bad = tests[~((tests >= -inputs.ROUNDING) & (tests <= 1 + inputs.ROUNDING))]
  if bad.size:
    raise ValueError(
      f'{name_of(p_value)} gave {bad[0]}, which is no p-value: it must be in '
      '[0, 1]'
    )
  return np.clip(tests, 0.0, 1.0)


def check_losses(losses: ArrayLike, tolerance: float) -> np.ndarray:
  """Returns losses [N] as float64.

  Args:
    losses: [N], in [0, 1].
    tolerance: in (0, 1).

  Raises:
    ValueError: if there are none, one is outside [0, 1], or the tolerance is
      not in (0, 1).
  """
  losses = np.asarray(losses, np.float64)
  if losses.ndim != 1 or not losses.size:
    raise ValueError(f'losses must be [N] with N >= 1, not {losses.shape}')
  if not 0 < tolerance < 1:
    raise ValueError(f'tolerance must be in (0, 1), not {tolerance}')
  bad = np.flatnonzero(~((losses >= 0) & (losses <= 1)))
  if bad.size:
    raise ValueError(
      f'losses must be in [0, 1], but loss {bad[0]} is {losses[bad[0]]}; map '
      'them by their range first, as calibrate(loss_range=...) does'
    )
  return losses


def _total_loss(losses: ArrayLike, tolerance: float) -> tuple[float, int]:
  """Returns the sum and the number of the losses, after checking them."""
  sample = check_losses(losses, tolerance)
  # The exact sum, rounded once: a pairwise sum may land above an integer.
  return math.fsum(sample), sample.size


def _ceil(total: np.ndarray) -> np.ndarray:
  """Rounds up, but takes 7.000000000000001 (100 losses of 0.07) for 7."""
  nearest = np.round(total)
  is_whole = np.abs(total - nearest) <= inputs.ROUNDING * np.maximum(1.0, total)
  return np.where(is_whole, nearest, np.ceil(total))

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
  total, number = _total_loss(losses, tolerance)
  gap = max(0.0, tolerance - total / number)
  return math.exp(-2 * number * gap**2)


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
  total, number = _total_loss(losses, tolerance)
  if total >= number * tolerance:
    return 1.0
  tail = special.bdtr(_ceil(total), number, tolerance)
  return min(1.0, math.e * float(tail))


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
  total, number = _total_loss(losses, tolerance)
  if total >= number * tolerance:
    return 1.0
  risk = total / number
  divergence = special.rel_entr(risk, tolerance)
  divergence += special.rel_entr(1 - risk, 1 - tolerance)
  return min(
    math.exp(-number * float(divergence)),
    math.e * float(special.bdtr(_ceil(total), number, tolerance)),
  )


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
  bad = np.flatnonzero(np.abs(sample - np.round(sample)) > 1e-9)
  if bad.size:
    raise ValueError(
      f'exact_binomial is for losses of 0 and 1, but loss {bad[0]} is '
      f'{sample[bad[0]]}; use hoeffding_bentkus or betting for losses between '
      'them'
    )
  count = int(np.round(sample).sum())
  return min(1.0, float(special.bdtr(count, sample.size, tolerance)))


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
    return batch(samples, tolerance=tolerance)
  return np.array([p_value(sample, tolerance=tolerance) for sample in samples])


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


def _ceil(total: float) -> int:
  """Rounds up, but takes 7.000000000000001 (100 losses of 0.07) for 7."""
  nearest = round(total)
  if abs(total - nearest) <= 1e-9 * max(1.0, total):
    return nearest
  return math.ceil(total)

"""FREE's threshold: two Beta laws of confidences, and where one prevails.

FREE (arXiv 2310.05424) has two exits, after layer E and after the last. Where
both have said a token one knows how confident the shallow one was and whether
they agreed. One Beta law is fitted to the confidences of those that agree, one
to those of the others, and the threshold is where the first begins to prevail.

Published, it is fitted anew before each of the first 300 outputs, to tokens of
those so far, so that an output depends on what was asked before. Such a
threshold is no fixed policy, and nothing can be certified of it. Here it is a
number that is fitted once, to rows that will certify nothing, and frozen before
calibration.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

# How far from 0 and 1 confidences are kept, where densities may be infinite.
_EDGE = 1e-4
# What a pair counts in the law that it is not of. In the published code shares
# are 0.2 and 0, raised to 1e-4 at least and divided by their sum.
_OTHER_SHARE = 1e-4 / (0.2 + 1e-4)
# Where thresholds are looked for, and the posterior that passes.
_GRID = np.linspace(0.3, 0.9, 10)
_LEAST_POSTERIOR = 0.4
# Confidences closer together than this are taken for equal.
_LEAST_SPREAD = 1e-6
_REMEDY = (
  'give pairs of more inputs or of another exit layer, or set the threshold by '
  'hand'
)


@dataclasses.dataclass(frozen=True)
class BetaLaw:
  """The density x^(alpha - 1) (1 - x)^(beta - 1) / B(alpha, beta) on (0, 1).

  Attributes:
    alpha: above 0.
    beta: above 0.
  """

  alpha: float
  beta: float

  @property
  def mean(self) -> float:
    """In (0, 1)."""
    return self.alpha / (self.alpha + self.beta)

  def log_density(self, x: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the density at x in (0, 1)."""
    kernel = (self.alpha - 1) * np.log(x) + (self.beta - 1) * np.log1p(-x)
    return kernel - special.betaln(self.alpha, self.beta)


@dataclasses.dataclass(frozen=True)
class BetaMixture:
  """How confident the shallow exit is where it is right, and where it is not.

  Attributes:
    agree: the law of confidences where both exits say the same token.
    disagree: the law where they do not.
  """

  agree: BetaLaw
  disagree: BetaLaw

  def posterior(self, confidences: ArrayLike) -> np.ndarray:
    """Returns how likely agreement is at a confidence, float64 of its shape.

      agree(c) / (agree(c) + disagree(c))

    As published, both laws weigh the same, however often tokens agree: it is
    not the probability that a token of this confidence agrees.

    Args:
      confidences: in [0, 1]; nearer to the ends than 1e-4 taken for 1e-4.

    Raises:
      ValueError: for a confidence outside [0, 1].
    """
    x = _inside(confidences)
    return special.expit(
      self.agree.log_density(x) - self.disagree.log_density(x)
    )

  def threshold(self) -> float:
    """Returns FREE's threshold, one of 10 points from 0.3 to 0.9.

    With n of the points having a posterior above 0.4, it is number 10 - n of
    them, counted from 0, and the last one, 0.9, if n is 0. Where the posterior
    rises, as it should, that is the first point that passes; where it falls
    again towards 1 it is a higher one.

    A token exits where its confidence is above it; `exits.ConfidenceExit` stops
    at one that equals it, too.

    Raises:
      ValueError: if confidences are not higher where tokens agree. The
        published code then takes the laws for each other.

    >>> BetaMixture(agree=BetaLaw(4, 1), disagree=BetaLaw(1, 4)).threshold()
    0.5
    """
    agree, disagree = self.agree.mean, self.disagree.mean
    if agree <= disagree:
      raise ValueError(
        f'the mean confidence is {agree:.4g} where tokens agree and not lower, '
        f'{disagree:.4g}, where they do not, so that no threshold tells them '
        f'apart; {_REMEDY}'
      )
    passing = int((self.posterior(_GRID) > _LEAST_POSTERIOR).sum())
    number = min(len(_GRID) - passing, len(_GRID) - 1)
    return float(_GRID[number])


def fit_beta_mixture(confidences: ArrayLike, agrees: ArrayLike) -> BetaMixture:
  """Returns the mixture of pairs whose agreement is known, by moments.

  With mean m and variance v of the confidences of a law,

    s = m (1 - m) / v - 1,  alpha = m s,  beta = (1 - m) s.

  As published there is one such step and no iterating, since it is known which
  law a pair is of, and every pair counts 0.0005 in the other law as well. So
  where 1 % of the pairs disagree, 5 % of what their law is made of agrees.

  Args:
    confidences: [M] in [0, 1], of the shallow exit; nearer to the ends than
      1e-4 taken for 1e-4.
    agrees: bool [M], whether both exits say the same token.

  Raises:
    ValueError: if shapes differ, a confidence is outside [0, 1], or a law has
      no two pairs whose confidences differ.

  >>> mixture = fit_beta_mixture(
  ...   [0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 0.9, 0.95],
  ...   [False, False, False, False, True, True, True, True],
  ... )
  >>> round(mixture.disagree.mean, 2), round(mixture.agree.mean, 2)
  (0.25, 0.84)
  >>> round(mixture.threshold(), 4)
  0.5667
  """
  x = _inside(confidences)
  labels = np.asarray(agrees)
  if x.ndim != 1 or labels.shape != x.shape:
    raise ValueError(
      f'confidences are {list(x.shape)} and agrees {list(labels.shape)}; give '
      'a confidence and whether the tokens agree for each of M pairs, [M]'
    )
  if labels.dtype != bool:
    raise ValueError(
      f'agrees is {labels.dtype}; give bools, True where both exits say the '
      'same token'
    )
  kinds = (labels, 'agree'), (~labels, 'disagree')
  # The smaller kind first: it is what is missing where the other is all there.
  for own, name in sorted(kinds, key=lambda kind: int(kind[0].sum())):
    _check_kind(x, own, name)
  return BetaMixture(*(_fit_law(x, own) for own, _ in kinds))


def _check_kind(x: np.ndarray, own: np.ndarray, name: str) -> None:
  """Raises ValueError if pairs [M] of a kind, its `own`, have no law."""
  found = x[own]
  if found.size >= 2 and np.ptp(found) >= _LEAST_SPREAD:
    return
  which = f', all of confidence {found[0]:.4g}' if found.size else ''
  raise ValueError(
    f'{found.size} of {x.size} pairs {name}{which}; a Beta law takes two at '
    f'least whose confidences differ; {_REMEDY}'
  )


def _fit_law(x: np.ndarray, own: np.ndarray) -> BetaLaw:
  """Returns the law of the pairs [M] that are its `own`, by moments."""
  shares = np.where(own, 1 - _OTHER_SHARE, _OTHER_SHARE)
  mean = np.average(x, weights=shares)
  variance = np.average((x - mean) ** 2, weights=shares)
  # Positive: inside (0, 1) no law of this mean has a variance of m (1 - m).
  size = mean * (1 - mean) / variance - 1
  return BetaLaw(float(mean * size), float((1 - mean) * size))


def _inside(confidences: ArrayLike) -> np.ndarray:
  """Returns confidences as float64, kept from 0 and 1."""
  x = np.asarray(confidences, np.float64)
  bad = x[~((x >= 0) & (x <= 1))]
  if bad.size:
    raise ValueError(
      f'confidence {bad.flat[0]} is not in [0, 1]; give those of a measure of '
      'exits, such as SoftmaxMargin'
    )
  return np.clip(x, _EDGE, 1 - _EDGE)

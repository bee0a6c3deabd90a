"""Laws that losses may follow, each with a risk of one's choice.

A law is given by its losses at evenly spaced quantiles, which is a sample
without noise: their mean is the risk, to within a thousandth or so.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import stats

_QUANTILES = (np.arange(4000) + 0.5) / 4000


@dataclasses.dataclass(frozen=True)
class LossLaw:
  """A family of laws.

  Attributes:
    description: what it looks like, in a few words.
    of_risk: risk -> losses [M] in loss_range with about this mean.
    loss_range: the smallest and the largest value a loss can have.
    binary: whether losses are at the ends of the range only.
    risk_share: the risk, as a share of the tolerance, at which it is measured.
  """

  description: str
  of_risk: Callable[[float], np.ndarray]
  loss_range: tuple[float, float] = (0.0, 1.0)
  binary: bool = False
  risk_share: float = 0.5


def zero(risk: float) -> np.ndarray:
  """No loss at all."""
  del risk
  return np.zeros(1)


def bernoulli(risk: float) -> np.ndarray:
  """Losses of 0 and 1: exact match."""
  return (_QUANTILES < risk).astype(np.float64)


def beta(risk: float) -> np.ndarray:
  """Losses all over [0, 1], most of them small: textual consistency."""
  return stats.beta(0.5, 0.5 * (1 - risk) / risk).ppf(_QUANTILES)


def sparse(risk: float) -> np.ndarray:
  """0 for most examples and 0.6 to 1 for the others: clipped risk.

  Raises:
    ValueError: for a risk above 0.8, which it cannot have.
  """
  share = risk / 0.8
  if share > 1:
    raise ValueError(f'a sparse law has a risk of at most 0.8, not {risk}')
  losses = np.zeros_like(_QUANTILES)
  hit = _QUANTILES < share
  losses[hit] = 0.6 + 0.4 * _QUANTILES[hit] / share
  return losses


def nearly_constant(risk: float) -> np.ndarray:
  """Within a tenth of the risk."""
  return risk * (0.9 + 0.2 * _QUANTILES)


def rewordings(risk: float) -> np.ndarray:
  """Signed: no difference for 60 %, else within 0.3 of their mean."""
  changed = _QUANTILES < 0.4
  losses = np.zeros_like(_QUANTILES)
  losses[changed] = risk / 0.4 + 0.3 * (2 * _QUANTILES[changed] / 0.4 - 1)
  return losses


LAWS = {
  'zero': LossLaw('all 0', zero, binary=True, risk_share=0.0),
  'bernoulli': LossLaw('0 or 1', bernoulli, binary=True),
  'beta': LossLaw('beta, most small', beta),
  'sparse': LossLaw('0, or 0.6 to 1', sparse),
  'nearly_constant': LossLaw('within 10 % of the risk', nearly_constant),
  'signed_zero': LossLaw('signed, all 0', zero, (-1.0, 1.0), risk_share=0.0),
  'signed': LossLaw('signed, 60 % are 0', rewordings, (-1.0, 1.0)),
}

"""Procedures for which the order of the settings does not matter.

They divide the error rate among all J settings, so that each has to pass a
harder test than in a fixed sequence, but none stands in the way of another.
"""

import abc
import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from calm_jax.calibration import inputs


class _Correction(abc.ABC):
  """What both share: smaller p-values never reject less."""

  @abc.abstractmethod
  def __call__(self, p_values: ArrayLike, error_rate: float) -> tuple[int, ...]:
    """Returns the rejected indices, ascending."""

  def level(self, num_settings: int, error_rate: float) -> float:
    """Returns what a first rejection takes: error_rate / J."""
    return error_rate / num_settings

  def next_test(self, p_values: ArrayLike, error_rate: float) -> int | None:
    """Returns the last untested index, until the last rejected is known.

    That lies between what is rejected with the untested at their worst and at
    their best.
    """
    p_values = inputs.check_p_values(p_values, error_rate)
    untested = np.isnan(p_values)
    worst = self(p_values, error_rate)
    best = self(np.where(untested, 0.0, p_values), error_rate)
    if max(worst, default=-1) == max(best, default=-1):
      return None
    return int(np.flatnonzero(untested)[-1])


@dataclasses.dataclass(frozen=True)
class Bonferroni(_Correction):
  """Rejects what falls below error_rate / J: any settings, in any order.

  Valid by the union bound, whatever the dependence. For settings in whose order
  risks need not rise. Bonferroni (1936); Learn then Test (arXiv 2110.01052)
  takes it for its simplest procedure.

  >>> Bonferroni()([0.02, 0.9, 0.01], 0.05)
  (2,)
  """

  name = 'bonferroni'

  def __call__(self, p_values: ArrayLike, error_rate: float) -> tuple[int, ...]:
    """Returns the indices of p-values of at most error_rate / J."""
    p_values = inputs.check_p_values(p_values, error_rate)
    level = self.level(p_values.size, error_rate)
    return tuple(np.flatnonzero(p_values <= level).tolist())


@dataclasses.dataclass(frozen=True)
class Holm(_Correction):
  """Rejects p-values in ascending order, at a level that rises.

  The smallest if it is at most error_rate / J, the next if it is at most
  error_rate / (J - 1), and so on until one is not. Rejects whatever Bonferroni
  does, and is as valid whatever the dependence. Holm (1979), "A simple
  sequentially rejective multiple test procedure".

  >>> Holm()([0.02, 0.9, 0.01], 0.05)
  (0, 2)
  """

  name = 'holm'

  def __call__(self, p_values: ArrayLike, error_rate: float) -> tuple[int, ...]:
    """Returns the rejected indices; what was not tested is not rejected."""
    p_values = inputs.check_p_values(p_values, error_rate)
    order = np.argsort(p_values, kind='stable')  # NaN comes last
    levels = error_rate / np.arange(p_values.size, 0, -1)
    failures = np.flatnonzero(~(p_values[order] <= levels))
    number = failures[0] if failures.size else p_values.size
    return tuple(sorted(order[:number].tolist()))

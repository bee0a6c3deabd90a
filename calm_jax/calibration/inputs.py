"""Checks of what a calibration is asked for, shared by its entry points."""

import itertools
import math
import numbers
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calm_jax import records

# How far from [0, 1] a p-value, and from a whole number a sum, may be for
# rounding alone.
ROUNDING = 1e-9


def check_settings(settings: Sequence[float | dict]) -> list[float | dict]:
  """Returns the settings as a list of floats and dicts.

  Args:
    settings: [J], from conservative to aggressive: thresholds in [0, 1],
      strictly decreasing, or dicts {path of a field of the policy: value},
      with a threshold among them ('threshold', 'exit_rule.threshold.value') or
      without.

  Raises:
    ValueError: if there are none, one is neither a number in [0, 1] nor a dict,
      or thresholds do not decrease strictly. Dicts are compared only where
      neighbours differ in nothing but their thresholds; of several thresholds,
      such as those of encoder and tokens, one at least must decrease.
  """
  plain = []
  for number, setting in enumerate(settings):
    if isinstance(setting, numbers.Real) and not isinstance(setting, bool):
      setting = float(setting)
    elif isinstance(setting, dict):
      setting = records.to_jsonable(setting)
    else:
      raise ValueError(f'setting {number} is {setting!r}, no number or dict')
    for threshold in _thresholds(setting).values():
      if not _is_probability(threshold):
        raise ValueError(
          f'setting {number} has threshold {threshold}, not in [0, 1]; give '
          "other kinds of settings as dicts, such as {'readout.num_blocks': 32}"
        )
    plain.append(setting)
  if not plain:
    raise ValueError('settings are empty; give at least one')
  for number, (before, after) in enumerate(itertools.pairwise(plain)):
    if _without_threshold(before) != _without_threshold(after):
      continue
    first, second = _thresholds(before), _thresholds(after)
    if first.keys() != second.keys():
      continue
    if any(first[path] > second[path] for path in first):
      continue
    raise ValueError(
      f'settings {number} and {number + 1}, {before} and {after}, are out of '
      'order: thresholds must decrease strictly, from conservative to '
      'aggressive, and no setting may come twice'
    )
  return plain


def _is_probability(value) -> bool:
  return isinstance(value, (int, float)) and 0 <= value <= 1


def threshold_of(setting: float | dict) -> float | None:
  """Returns the threshold of a setting, of several that of tokens; or None.

  >>> threshold_of(0.9), threshold_of({'exit_rule.threshold.value': 0.8})
  (0.9, 0.8)
  """
  found = _thresholds(setting)
  of_tokens = (found[path] for path in found if path.startswith('exit_rule'))
  return next(of_tokens, next(iter(found.values()), None))


def _thresholds(setting: float | dict) -> dict[str, float]:
  """Returns the thresholds of a setting, by their paths."""
  if not isinstance(setting, dict):
    return {'threshold': setting}
  return {path: setting[path] for path in setting if _is_threshold(path)}


def _is_threshold(path: str) -> bool:
  return re.search(r'(^|\.)threshold(\.value)?$', path) is not None


def _without_threshold(setting) -> dict | None:
  """Returns what is left of a dict; None for a bare threshold."""
  if not isinstance(setting, dict):
    return None
  return {key: setting[key] for key in setting if not _is_threshold(key)}


def check_range(
  loss_range: tuple[float, float], tolerance: float
) -> tuple[float, float]:
  """Returns the range of the losses.

  Args:
    loss_range: the smallest and the largest value a loss can have, finite.
    tolerance: strictly between them.

  Raises:
    ValueError: if it is empty or the tolerance is not strictly inside it.
  """
  low, high = loss_range
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise ValueError(f'loss_range must be (low, high), not {loss_range}')
  if not low < tolerance < high:
    raise ValueError(
      f'tolerance {tolerance} must lie strictly between {low:g} and {high:g}, '
      'the loss_range; it is in the units of the losses'
    )
  return low, high


def check_table(losses: np.ndarray) -> np.ndarray:
  """Returns losses [N, J] as float64.

  Raises:
    ValueError: if they are no numbers, or of another shape.
  """
  if losses.ndim != 2 or not losses.size or losses.dtype.kind not in 'biuf':
    raise ValueError(
      'losses must be numbers [N examples, J settings] with N, J >= 1, not '
      f'{losses.dtype} {losses.shape}'
    )
  return losses.astype(np.float64)


def check_inside(
  losses: np.ndarray, loss_range: tuple[float, float], *, where: np.ndarray
) -> None:
  """Raises ValueError for a loss outside the range, or NaN, naming it.

  Args:
    losses: [N, J], in their units.
    loss_range: the smallest and the largest value a loss can have.
    where: bool, broadcasts to [N, J]: the losses that are looked at.
  """
  low, high = loss_range
  slack = 1e-9 * (high - low)
  inside = (losses >= low - slack) & (losses <= high + slack)
  for row, column in np.argwhere(~inside & where):
    raise ValueError(
      f'the loss of row {row}, column {column} is {losses[row, column]}, not '
      f'within the loss_range {low:g} to {high:g}'
    )


def to_unit(
  losses: np.ndarray, tolerance: float, loss_range: tuple[float, float]
) -> tuple[np.ndarray, float]:
  """Returns losses and a tolerance mapped to [0, 1] by the range of the losses.

  Args:
    losses: of any shape, in their units; NaN where not known.
    tolerance: strictly inside the range.
    loss_range: the smallest and the largest value a loss can have.

  Raises:
    ValueError: if the tolerance is not inside the range.

  >>> to_unit(np.array([-1.0, 0.0]), 0.5, (-1, 1))
  (array([0. , 0.5]), 0.75)
  """
  low, high = check_range(loss_range, tolerance)
  mapped = np.clip((losses - low) / (high - low), 0, 1)
  return mapped, (tolerance - low) / (high - low)


def check_error_rate(error_rate: float) -> None:
  """Raises ValueError unless the error rate is in (0, 1)."""
  if not 0 < error_rate < 1:
    raise ValueError(
      f'error_rate must be in (0, 1), not {error_rate}; 0.05 means that at '
      'most one calibration in twenty certifies a setting above the tolerance'
    )


def check_p_values(p_values: ArrayLike, error_rate: float) -> np.ndarray:
  """Returns p-values [J] as float64 in [0, 1], NaN allowed.

  Args:
    p_values: [J], in [0, 1] but for rounding; NaN where not tested.
    error_rate: in (0, 1).

  Raises:
    ValueError: if one is outside [0, 1], there are none, or the error rate is
      not in (0, 1).
  """
  p_values = np.asarray(p_values, np.float64)
  if p_values.ndim != 1 or not p_values.size:
    raise ValueError(f'p_values must be [J], J >= 1, not {p_values.shape}')
  check_error_rate(error_rate)
  bad = np.flatnonzero((p_values < -ROUNDING) | (p_values > 1 + ROUNDING))
  if bad.size:
    raise ValueError(
      f'p_values must be in [0, 1], but number {bad[0]} is {p_values[bad[0]]}'
    )
  return np.clip(p_values, 0.0, 1.0)

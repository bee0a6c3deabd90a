"""A stored loss table, taken for the whole population.

Nobody knows the risks of a real population. But the rows of a full loss table
may be taken for one: its column means ARE the risks then.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.calibration import inputs

# Fewer rows are no population: their 20 % are a handful of examples, and not
# even losses of 0 would certify a tolerance of 0.1.
FEWEST_ROWS = 30


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
  """A full loss table whose column means are taken for true risks.

  Attributes:
    losses: [N, J], within loss_range, none missing.
    settings: [J], from conservative to aggressive.
    mean_exit_layers: [J], layers per token.
    num_layers: L, what the full model takes; None if not known.
    speed_ups: [J], how many times faster than the full model each setting is;
      None if that was not measured.
    loss_range: the smallest and the largest value a loss can have.
  """

  losses: np.ndarray
  settings: Sequence[Any]
  mean_exit_layers: np.ndarray
  num_layers: int | None = None
  speed_ups: np.ndarray | None = None
  loss_range: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    """Brings the fields to one form.

    Raises:
      ValueError: for a table with missing columns, losses outside their range,
        settings out of order, or too few rows to stand for a population.
    """

    def put(name, value):
      object.__setattr__(self, name, value)

    losses = np.asarray(self.losses, np.float64)
    put('settings', tuple(inputs.check_settings(self.settings)))
    _check_losses(losses, self.settings, self.loss_range)
    put('losses', losses)
    for name in ('mean_exit_layers', 'speed_ups'):
      if getattr(self, name) is None:
        continue
      values = np.asarray(getattr(self, name), np.float64)
      if values.shape != losses.shape[1:]:
        raise ValueError(
          f'{name} have shape {values.shape}, expected one number for each of '
          f'the {losses.shape[1]} settings'
        )
      put(name, values)

  @property
  def num_examples(self) -> int:
    """N."""
    return len(self.losses)

  @functools.cached_property
  def risks(self) -> np.ndarray:
    """The risk of each setting [J]."""
    return self.losses.mean(axis=0)

  @functools.cached_property
  def mapped(self) -> np.ndarray:
    """The losses as p-values take them, in [0, 1]; by columns [J, N]."""
    low, high = self.loss_range
    mapped = np.clip((self.losses - low) / (high - low), 0, 1)
    return np.ascontiguousarray(mapped.T)

  def of_choices(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns risk [M] and mean exit layer [M] of chosen columns [M].

    -1 stands for the full model, which loses nothing and takes all layers.
    """
    layers = np.nan if self.num_layers is None else self.num_layers
    # Indexed by -1 as by any other column.
    return (
      np.append(self.risks, 0.0)[chosen],
      np.append(self.mean_exit_layers, layers)[chosen],
    )

  def speed_ups_of(self, chosen: np.ndarray) -> np.ndarray | None:
    """Returns the speed-up [M] of chosen columns [M]; 1 for the full model."""
    if self.speed_ups is None:
      return None
    return np.append(self.speed_ups, 1.0)[chosen]

  def above(self, risks: np.ndarray, tolerance: float) -> np.ndarray:
    """Says which risks are above the tolerance by more than rounding."""
    low, high = self.loss_range
    return risks > tolerance + 1e-12 * (high - low)


def _check_losses(losses: np.ndarray, settings, loss_range) -> None:
  """Raises ValueError unless the losses can stand for a population."""
  low, high = loss_range
  inputs.check_range(loss_range, (low + high) / 2)
  if losses.ndim != 2 or losses.shape[1] != len(settings):
    raise ValueError(
      f'losses have shape {losses.shape}, expected [N examples, '
      f'{len(settings)} settings]'
    )
  if len(losses) < FEWEST_ROWS:
    raise ValueError(
      f'{len(losses)} rows cannot stand for a population; it takes at least '
      f'{FEWEST_ROWS}, and some hundreds to learn anything'
    )
  missing = np.isnan(losses)
  holes = missing[-1]  # of columns that were left out, or not finished
  for column in np.flatnonzero(holes):
    raise ValueError(
      f'column {column} (setting {settings[column]}) was not decoded, as are '
      f'{int(holes.sum())} of {len(settings)}, for all or for some rows: a '
      'population has no gaps. Calibrate with --gin.FULL_GRID=True, and '
      'without AnytimeSequence, to fill every column'
    )
  slack = 1e-9 * (high - low)
  inside = (losses >= low - slack) & (losses <= high + slack)
  for row, column in np.argwhere(~inside):
    raise ValueError(
      f'the loss of row {row}, column {column} is {losses[row, column]}, not '
      f'within the loss_range {low:g} to {high:g}'
    )

"""What stopping saves on draws of a table, beside a look at all rows."""

import dataclasses
import math
from typing import Any

import numpy as np

from calm_jax import calibration
from calm_jax.calibration import anytime
from calm_jax.calibration.population import Population

_NEVER_GIVES_UP = 0.0


@dataclasses.dataclass(frozen=True)
class AnytimeRow:
  """Means over draws of one setting or of one sequence of settings.

  Attributes:
    name: the law of the losses, or the loss of a table.
    tolerance: in the units of the losses.
    risk_share: the risk as a share of the tolerance; NaN for tables.
    there: n, the rows that there are.
    fixed: how often all n rows certify anything.
    stopped: how often the rows looked at do.
    fixed_layers: layers per token that are certified from all n rows; NaN for a
      law.
    stopped_layers: from the rows looked at.
    full_rows: rows that the full model decodes if it may stop; n otherwise.
    setting_rows: rows decoded at settings, all of them together, if it may
      stop.
    fixed_setting_rows: n times the settings tested.
  """

  name: str
  tolerance: float
  risk_share: float
  there: int
  fixed: float
  stopped: float
  fixed_layers: float
  stopped_layers: float
  full_rows: float
  setting_rows: float
  fixed_setting_rows: float


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of M draws: the column chosen, -1 for none, and rows decoded."""

  chosen: np.ndarray
  full_rows: np.ndarray
  setting_rows: np.ndarray


def outcome(
  population: Population,
  draws: np.ndarray,
  *,
  tolerance: float,
  error_rate: float,
  procedure: calibration.AnytimeSequence,
) -> Outcome:
  """Calibrates on every draw, in the order in which rows were drawn.

  Args:
    population: the table.
    draws: [M, n] indices of its rows.
    tolerance: in the units of its losses.
    error_rate: in (0, 1).
    procedure: when to look, and when to give up.
  """
  low, high = population.loss_range
  number = draws.shape[1]
  chosen = np.full(len(draws), -1)
  full, settings = np.zeros((2, len(draws)), int)
  alive = np.arange(len(draws))
  for losses in population.mapped:
    paths = calibration.Betting(level=error_rate).path(
      losses[draws[alive]],
      tolerance=(tolerance - low) / (high - low),
      number=number,
    )
    ends, verdicts = procedure.stops(paths, error_rate)
    settings[alive] += ends
    full[alive] = np.maximum(full[alive], ends)
    alive = alive[verdicts == anytime.REJECTED]
    chosen[alive] += 1
    if not alive.size:
      break
  return Outcome(chosen, full, settings)


def compare(
  name: str,
  population: Population,
  *,
  tolerance: float,
  there: int,
  procedure: calibration.AnytimeSequence,
  error_rate: float = 0.05,
  num_draws: int = 1000,
  seed: int = 0,
  risk_share: float = math.nan,
) -> AnytimeRow:
  """Returns what stopping saves on draws of a table.

  Args:
    name: what to call it.
    population: the table.
    tolerance: in the units of its losses.
    there: n, the rows of a draw.
    procedure: when to look, and when to give up.
    error_rate: in (0, 1).
    num_draws: M.
    seed: of the draws.
    risk_share: kept in the row.
  """
  draws = np.random.default_rng(seed).integers(
    population.num_examples, size=(num_draws, there)
  )
  about: dict[str, Any] = dict(tolerance=tolerance, error_rate=error_rate)
  stopped = outcome(population, draws, procedure=procedure, **about)
  # A single look at all rows.
  whole = calibration.AnytimeSequence(block=there, give_up=_NEVER_GIVES_UP)
  fixed = outcome(population, draws, procedure=whole, **about)
  layers = [
    math.nan
    if population.num_layers is None
    else float(population.of_choices(found.chosen)[1].mean())
    for found in (fixed, stopped)
  ]
  return AnytimeRow(
    name,
    tolerance,
    risk_share,
    there,
    fixed=float((fixed.chosen >= 0).mean()),
    stopped=float((stopped.chosen >= 0).mean()),
    fixed_layers=layers[0],
    stopped_layers=layers[1],
    full_rows=float(stopped.full_rows.mean()),
    setting_rows=float(stopped.setting_rows.mean()),
    fixed_setting_rows=float(fixed.setting_rows.mean()),
  )

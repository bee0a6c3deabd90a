"""What `validate` does with loss tables, one after the other.

Reads them, checks that they can stand side by side, and turns each into a
record of counts, splits, certificates and a curve.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import calibration, records
from calm_jax.calibration import (
  choices,
  split_studies,
  tolerance_curves,
  violations,
)
from calm_jax.calibration import population as populations

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Study:
  """What is done with every table.

  Attributes:
    statistics: error rate, p-value and procedure; several differ in p-values.
    tolerances: in the units of the losses.
    num_draws: calibrations per count.
    draw_size: rows of a draw; those of the table if None.
    num_splits: random 80/20 splits.
    curve_tolerances: the tolerances of the curves, () for no curves. They are
      of the first of the statistics.
    curve_draws: calibrations per tolerance of the curves.
    seed: of draws and splits.
  """

  statistics: tuple[choices.Statistics, ...]
  tolerances: tuple[float, ...]
  num_draws: int
  draw_size: int | None
  num_splits: int
  curve_tolerances: tuple[float, ...]
  curve_draws: int
  seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTable:
  """A loss table, checked.

  Attributes:
    name: how the comparison calls it, by default its confidence measure.
    path: where it was.
    table: as it was read.
    population: the same, taken for the population.
    speeds: wall clock of its settings, None if they were not timed.
  """

  name: str
  path: str
  table: records.LossTable
  population: populations.Population
  speeds: records.SettingSpeeds | None = None

  @property
  def about(self) -> dict:
    """What the table says of itself."""
    return self.table.fingerprint


def load_tables(
  paths: Sequence[str], say: Say, *, names: Sequence[str] | None = None
) -> list[LoadedTable]:
  """Reads full loss tables that can stand side by side.

  Args:
    paths: where they are.
    say: gets a line about what is odd.
    names: what to call them; their confidence measures if None.

  Raises:
    FileNotFoundError: if one is not there.
    ValueError: if one is not full, too small or out of its range, if they are
      of different losses, or if there are not as many different names.
  """
  if not paths:
    raise ValueError('there are no tables; give --table=.../loss_table.npz')
  loaded = [_load_table(path, say) for path in paths]
  for entry in loaded[1:]:
    _check_comparable(loaded[0], entry, say)
  if names is None:
    found = [entry.name for entry in loaded]
    names = [
      name if found.count(name) == 1 else f'{name} (table {number})'
      for number, name in enumerate(found, 1)
    ]
  if len(set(names)) != len(loaded) or len(names) != len(loaded):
    raise ValueError(
      f'names are {list(names)}; give {len(loaded)} different ones, one per '
      'table'
    )
  return [
    dataclasses.replace(entry, name=name)
    for entry, name in zip(loaded, names, strict=True)
  ]


def _check_comparable(first: LoadedTable, other: LoadedTable, say: Say) -> None:
  """Raises ValueError for a table that means something else by a loss."""
  for what, here, there in (
    ('loss', first.table.loss, other.table.loss),
    ('metric', first.about.get('metric'), other.about.get('metric')),
    ('loss_range', first.population.loss_range, other.population.loss_range),
  ):
    if here != there:
      raise ValueError(
        f'{first.path} has {what} {here!r}, {other.path} has {there!r}: one '
        'tolerance means different things there. Validate them one by one'
      )
  if set(first.table.example_ids) != set(other.table.example_ids):
    say(f'{other.path} is of other inputs than {first.path}.')


def _load_table(path: str, say: Say) -> LoadedTable:
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no loss table at {path}; calm_jax.cli.calibrate with '
      '--gin.FULL_GRID=True writes MODEL_DIR/calibration/loss_table.npz'
    )
  table = records.read_loss_table(path)
  low, high = table.fingerprint.get('loss_range', (0.0, 1.0))
  speeds = records.find_setting_speeds(path, table.settings, table.fingerprint)
  try:
    population = populations.Population(
      losses=table.losses,
      settings=table.settings,
      mean_exit_layers=table.mean_exit_layers,
      num_layers=table.fingerprint.get('num_layers'),
      speed_ups=None if speeds is None else speeds.speed_ups,
      loss_range=(float(low), float(high)),
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  if population.num_layers is None:
    say(
      f'{path} does not say how many layers the model has: mean layers are '
      'left out where the full model was chosen. Calibrate again to know.'
    )
  name = _measure(table) or os.path.splitext(os.path.basename(path))[0]
  return LoadedTable(name, path, table, population, speeds)


def _measure(table: records.LossTable) -> str:
  """Returns the name of the confidence measure, '' if the table has none."""
  described = table.fingerprint
  for key in ('policy', 'exit_rule', 'measure', 'type'):
    described = described.get(key) if isinstance(described, dict) else None
  return described or ''


def validate_table(
  entry: LoadedTable, study: Study, say: Say
) -> records.ValidatedTable:
  """Counts, splits, certifies and sweeps one table.

  Args:
    entry: the table.
    study: what to do.
    say: gets a line of progress now and then.
  """
  table, population = entry.table, entry.population
  asked = [(s, t) for s in study.statistics for t in study.tolerances]
  near = [
    (s, *pair)
    for s in study.statistics
    for pair in violations.near_tolerances(population)
  ]
  certificates = tuple(_certify(entry, s, t, say) for s, t in asked)
  counts = tuple(_count(entry, study, s, t, say) for s, t in asked)
  splits = tuple(
    split_studies.study_splits(
      population,
      tolerance=t,
      statistics=s,
      num_splits=study.num_splits,
      seed=study.seed,
    )
    for s, t in asked
  )
  near_counts = tuple(
    _count(entry, study, s, t, say, near=k) for s, k, t in near
  )
  return records.ValidatedTable(
    name=entry.name,
    path=entry.path,
    checksum=_checksum(table),
    task=entry.about.get('task', ''),
    split=entry.about.get('split', ''),
    measure=_measure(table),
    loss=table.loss,
    metric=entry.about.get('metric', ''),
    loss_range=population.loss_range,
    num_examples=population.num_examples,
    num_layers=population.num_layers,
    settings=population.settings,
    risks=tuple(population.risks.tolist()),
    mean_exit_layers=tuple(population.mean_exit_layers.tolist()),
    counts=counts,
    near_counts=near_counts,
    splits=splits,
    certificates=certificates,
    curve=_curve(entry, study, say),
    speeds=entry.speeds,
    fingerprint=entry.about,
  )


def _certify(
  entry: LoadedTable,
  statistics: choices.Statistics,
  tolerance: float,
  say: Say,
) -> records.CertificateSummary:
  """Calibrates on the whole table, as calm_jax.cli.calibrate would."""
  certificate = calibration.calibrate(
    entry.table.losses,
    entry.population.settings,
    tolerance=tolerance,
    error_rate=statistics.error_rate,
    p_value=statistics.p_value,
    procedure=statistics.procedure,
    loss_range=entry.population.loss_range,
    context={'loss': entry.table.loss},
  )
  say(f'{entry.name}, the whole table: {certificate.describe()}')
  return records.CertificateSummary.of(
    certificate,
    loss=entry.table.loss,
    metric=entry.about.get('metric', ''),
    measure=_measure(entry.table),
  )


def _count(
  entry: LoadedTable,
  study: Study,
  statistics: choices.Statistics,
  tolerance: float,
  say: Say,
  near: Any = None,
) -> records.ViolationCount:
  start = time.perf_counter()
  count = violations.count_violations(
    entry.population,
    tolerance=tolerance,
    statistics=statistics,
    num_draws=study.num_draws,
    draw_size=study.draw_size,
    seed=study.seed,
    near_setting=near,
  )
  say(
    f'{entry.name}, {count.p_value}, tolerance {tolerance:.4g}'
    f'{"" if near is None else " (just below a risk)"}: {count.num_violations} '
    f'of {count.num_draws} draws violate it '
    f'({time.perf_counter() - start:.1f} s)'
  )
  return count


def _curve(
  entry: LoadedTable, study: Study, say: Say
) -> records.ToleranceCurve | None:
  if not study.curve_tolerances:
    return None
  number = len(study.curve_tolerances)

  def progress(done):
    if done % 5 == 0 or done == number:
      say(f'{entry.name}: {done} of {number} points of the curves')

  return tolerance_curves.tolerance_curve(
    entry.population,
    study.curve_tolerances,
    statistics=study.statistics[0],
    num_draws=study.curve_draws,
    draw_size=study.draw_size,
    num_splits=study.num_splits,
    seed=study.seed,
    progress=progress,
  )


def _checksum(table: records.LossTable) -> str:
  """Returns a hash of what the table holds."""
  digest = hashlib.sha256(table.losses.tobytes())
  digest.update(table.mean_exit_layers.tobytes())
  header = [table.settings, table.example_ids, table.loss, table.fingerprint]
  text = json.dumps(records.to_jsonable(header), sort_keys=True)
  digest.update(text.encode())
  return f'sha256:{digest.hexdigest()}'

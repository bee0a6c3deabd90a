"""Counts how often the guarantee is broken, on one loss table after the other.

Each table is turned into a record of counts, splits, certificates and a curve.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from calm_jax import records
from calm_jax.calibration import (
  choices,
  joint_validation,
  procedure,
  split_studies,
  tolerance_curves,
  violations,
)
from calm_jax.calibration.loaded_tables import LoadedTable, Say, measure_of
from calm_jax.calibration.validation_plan import ValidationPlan
from calm_jax.records import provenance

_FEWEST_TO_REPORT = 1000


@dataclasses.dataclass(frozen=True)
class _Study:
  """A plan with what follows from the tables.

  Attributes:
    plan: the plan.
    statistics: one per p-value.
    curve_tolerances: the tolerances of the curves, () for no curves. They are
      of the first of the statistics.
    say: gets a line of progress now and then.
  """

  plan: ValidationPlan
  statistics: tuple[choices.Statistics, ...]
  curve_tolerances: tuple[float, ...]
  say: Say


def validate(
  tables: Sequence[LoadedTable],
  plan: ValidationPlan | None = None,
  *,
  say: Say = print,
) -> records.Validation:
  """Counts violations on tables that can stand side by side.

  Args:
    tables: from `load_loss_tables`.
    plan: what to do with every table; the defaults if None.
    say: gets a line of progress now and then.

  Raises:
    ValueError: for numbers that are outside their range.
  """
  plan = ValidationPlan() if plan is None else plan
  if plan.num_draws < _FEWEST_TO_REPORT:
    say(f'{plan.num_draws} draws are for a trial; report {_FEWEST_TO_REPORT}.')
  if not plan.promises:
    joint_validation.refuse_several(tables)
  curve_tolerances = ()
  if plan.curve_points and not plan.promises:
    curve_tolerances = tolerance_curves.sweep_tolerances(
      [entry.population for entry in tables],
      number=plan.curve_points,
      at_least=max(plan.tolerances),
    )
  study = _Study(
    plan=plan,
    statistics=plan.statistics(joint_validation.range_of_all(tables[0])),
    curve_tolerances=tuple(curve_tolerances),
    say=say,
  )
  return records.Validation(
    error_rate=plan.error_rate,
    procedure=study.statistics[0].procedure.name,
    seed=plan.seed,
    tables=tuple(_validate_table(entry, study) for entry in tables),
    context=provenance.run_context(
      device='cpu',
      dtype='float64',
      libraries=('numpy', 'scipy', 'calm_jax'),
      seeds={'draws': plan.seed},
    ),
  )


@dataclasses.dataclass(frozen=True)
class _Counted:
  """What was counted and certified of one table, in the record's fields."""

  loss: str
  metric: str
  loss_range: tuple[float, float]
  risks: tuple[float, ...]
  counts: tuple[records.ViolationCount, ...]
  near_counts: tuple[records.ViolationCount, ...]
  certificates: tuple[records.CertificateSummary, ...]
  splits: tuple[records.SplitStudy, ...] = ()


def _validate_table(
  entry: LoadedTable, study: _Study
) -> records.ValidatedTable:
  """Counts, splits, certifies and sweeps one table."""
  table, population = entry.table, entry.population
  counted = _count_jointly if study.plan.promises else _count_alone
  return records.ValidatedTable(
    name=entry.name,
    path=entry.path,
    checksum=_checksum(table),
    task=entry.about.get('task', ''),
    split=entry.about.get('split', ''),
    measure=measure_of(table),
    num_examples=population.num_examples,
    num_layers=population.num_layers,
    settings=tuple(population.settings),
    mean_exit_layers=tuple(population.mean_exit_layers.tolist()),
    curve=_curve(entry, study),
    speeds=entry.speeds,
    fingerprint=entry.about,
    **vars(counted(entry, study)),
  )


def _count_alone(entry: LoadedTable, study: _Study) -> _Counted:
  """Counts and certifies the one loss of a table at the tolerances asked."""
  population, plan = entry.population, study.plan
  asked = [(s, t) for s in study.statistics for t in plan.tolerances]
  near = [
    (s, *pair)
    for s in study.statistics
    for pair in violations.near_tolerances(population)
  ]
  certificates = tuple(_certify(entry, s, t, study.say) for s, t in asked)
  counts = tuple(_count(entry, study, s, t) for s, t in asked)
  splits = tuple(
    split_studies.study_splits(
      population,
      tolerance=t,
      statistics=s,
      num_splits=plan.num_splits,
      seed=plan.seed,
    )
    for s, t in asked
  )
  return _Counted(
    loss=entry.table.loss,
    metric=entry.about.get('metric', ''),
    loss_range=population.loss_range,
    risks=tuple(population.risks.tolist()),
    counts=counts,
    near_counts=tuple(_count(entry, study, s, t, near=k) for s, k, t in near),
    certificates=certificates,
    splits=splits,
  )


def _count_jointly(entry: LoadedTable, study: _Study) -> _Counted:
  """Counts and certifies the sets of promises that were asked for."""
  sets = [
    joint_validation.bounds_of(entry, promised)
    for promised in study.plan.promises
  ]
  certificates, counts, near_counts = [], [], []
  for statistics in study.statistics:
    for promises in sets:
      summary, words = joint_validation.certify(entry, statistics, promises)
      study.say(f'{entry.name}, the whole table: {words}')
      certificates.append(summary)
      for setting, bounds in (
        (None, promises),
        *joint_validation.near_promises(entry, promises),
      ):
        count = joint_validation.count(
          entry, study.plan, statistics, bounds, setting
        )
        _say_joint(study.say, entry, count)
        (counts if setting is None else near_counts).append(count)
  named = {
    (bound.loss, bound.metric) for promises in sets for bound in promises
  }
  kept = [key for key in entry.populations if key in named]
  first = entry.populations[kept[0]]
  return _Counted(
    loss=' and '.join(loss for loss, _ in kept),
    metric=', '.join(dict.fromkeys(metric for _, metric in kept)),
    loss_range=first.loss_range,
    risks=tuple(first.risks.tolist()),
    counts=tuple(counts),
    near_counts=tuple(near_counts),
    certificates=tuple(certificates),
  )


def _say_joint(say: Say, entry: LoadedTable, count) -> None:
  promised = ', '.join(one.describe() for one in count.promises)
  near = '' if count.near_setting is None else ' (one just below a risk)'
  say(
    f'{entry.name}, {count.p_value}, {promised}{near}: '
    f'{count.num_violations} of {count.num_draws} draws break any of it'
  )


def _certify(
  entry: LoadedTable,
  statistics: choices.Statistics,
  tolerance: float,
  say: Say,
) -> records.CertificateSummary:
  """Calibrates on the whole table, as calm_jax.cli.calibrate would."""
  certificate = procedure.calibrate(
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
    measure=measure_of(entry.table),
  )


def _count(
  entry: LoadedTable,
  study: _Study,
  statistics: choices.Statistics,
  tolerance: float,
  near: Any = None,
) -> records.ViolationCount:
  start = time.perf_counter()
  count = violations.count_violations(
    entry.population,
    tolerance=tolerance,
    statistics=statistics,
    num_draws=study.plan.num_draws,
    draw_size=study.plan.draw_size,
    seed=study.plan.seed,
    near_setting=near,
  )
  study.say(
    f'{entry.name}, {count.p_value}, tolerance {tolerance:.4g}'
    f'{"" if near is None else " (just below a risk)"}: {count.num_violations} '
    f'of {count.num_draws} draws violate it '
    f'({time.perf_counter() - start:.1f} s)'
  )
  return count


def _curve(entry: LoadedTable, study: _Study) -> records.ToleranceCurve | None:
  if not study.curve_tolerances:
    return None
  number = len(study.curve_tolerances)

  def progress(done):
    if done % 5 == 0 or done == number:
      study.say(f'{entry.name}: {done} of {number} points of the curves')

  return tolerance_curves.tolerance_curve(
    entry.population,
    study.curve_tolerances,
    statistics=study.statistics[0],
    num_draws=study.plan.curve_draws,
    draw_size=study.plan.draw_size,
    num_splits=study.plan.num_splits,
    seed=study.plan.seed,
    progress=progress,
  )


def _checksum(table: records.LossTable) -> str:
  """Returns a hash of what the table holds."""
  digest = hashlib.sha256(table.losses.tobytes())
  digest.update(table.mean_exit_layers.tobytes())
  header = [table.settings, table.example_ids, table.loss, table.fingerprint]
  if table.other_losses is not None and table.others:
    header.append(table.others)
    digest.update(table.other_losses.tobytes())
  text = json.dumps(records.to_jsonable(header), sort_keys=True)
  digest.update(text.encode())
  return f'sha256:{digest.hexdigest()}'

"""Several promised losses of one table: are all of them kept together?"""

from collections.abc import Sequence

from calm_jax import records
from calm_jax.calibration import bounds, choices, joint, violations
from calm_jax.calibration.bounds import Bound
from calm_jax.calibration.loaded_tables import LoadedTable, measure_of
from calm_jax.calibration.validation_plan import ValidationPlan


def refuse_several(tables: Sequence[LoadedTable]) -> None:
  """Raises ValueError for a table of several losses: which one is meant?"""
  for entry in tables:
    if len(entry.populations) > 1:
      names = [name for name, _ in entry.populations]
      given = ','.join(f'{name}=0.05' for name in names)
      raise ValueError(
        f'{entry.path} holds the losses {", ".join(names)}; say what is '
        f'promised of them together, --promises={given}, or of one alone, '
        f'--promises={names[-1]}=0.05'
      )


def range_of_all(entry: LoadedTable) -> tuple[float, float]:
  """Returns the range that the losses of a table have together."""
  ranges = [one.loss_range for one in entry.populations.values()]
  return min(low for low, _ in ranges), max(high for _, high in ranges)


def bounds_of(entry: LoadedTable, promised: Sequence[tuple]) -> list[Bound]:
  """Returns what is promised of the losses of a table, in one order.

  Args:
    entry: the table.
    promised: (loss, tolerance) or (loss, tolerance, metric).

  Raises:
    ValueError: for a loss that the table does not hold, or whose metric has to
      be named; for a tolerance out of range, no promises, or a loss that has
      two.
  """
  found = []
  for loss, tolerance, *metric in promised:
    keys = [
      key
      for key in entry.populations
      if key[0] == loss and (not metric or key[1] == metric[0])
    ]
    if len(keys) != 1:
      there = [f'{name}:{by}' for name, by in entry.populations]
      raise ValueError(
        f'{entry.path} has {len(keys)} losses {":".join((loss, *metric))}; it '
        f'holds {", ".join(there)}. A table holds what was promised when it '
        'was made (--gin.PROMISES of calm_jax.cli.calibrate)'
      )
    found.append(
      Bound(
        loss=loss,
        metric=keys[0][1],
        tolerance=tolerance,
        loss_range=entry.populations[keys[0]].loss_range,
      )
    )
  return [found[place] for place in bounds.in_order(found)]


def near_promises(
  entry: LoadedTable, promises: Sequence[Bound]
) -> list[tuple[float | dict, list[Bound]]]:
  """Returns settings with promises of which each is barely too much for one.

  Of each promise in turn, its tolerance is put just below the risk of each
  setting (`violations.near_tolerances`) while the others stay as they are.
  """
  near = []
  for place, bound in enumerate(promises):
    population = entry.populations[bound.loss, bound.metric]
    for setting, tolerance in violations.near_tolerances(population):
      changed = Bound(
        loss=bound.loss,
        metric=bound.metric,
        tolerance=tolerance,
        loss_range=bound.loss_range,
      )
      near.append(
        (setting, [*promises[:place], changed, *promises[place + 1 :]])
      )
  return near


def certify(
  entry: LoadedTable,
  statistics: choices.Statistics,
  promises: Sequence[Bound],
) -> tuple[records.CertificateSummary, str]:
  """Calibrates on the whole table; returns the summary and all of its words."""
  certificate = joint.calibrate_jointly(
    [entry.populations[bound.loss, bound.metric].losses for bound in promises],
    entry.population.settings,
    promises,
    error_rate=statistics.error_rate,
    p_value=statistics.p_value,
    procedure=statistics.procedure,
  )
  summary = records.CertificateSummary.of(
    certificate,
    loss=promises[0].loss,
    metric=promises[0].metric,
    measure=measure_of(entry.table),
  )
  return summary, certificate.describe()


def count(
  entry: LoadedTable,
  plan: ValidationPlan,
  statistics: choices.Statistics,
  promises: Sequence[Bound],
  near: float | dict | None = None,
) -> records.ViolationCount:
  """Counts the draws whose choice breaks any of the promises."""
  return violations.count_joint_violations(
    entry.populations,
    promises=promises,
    statistics=statistics,
    num_draws=plan.num_draws,
    draw_size=plan.draw_size,
    seed=plan.seed,
    near_setting=near,
  )

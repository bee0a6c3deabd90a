"""What screening leaves to test, and what tests make of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import calibration, records
from calm_jax.evaluation.tuning_clock import Clocked
from calm_jax.evaluation.tuning_columns import Column, tables_of


@dataclasses.dataclass(frozen=True)
class Screened:
  """Candidates that were screened, and what becomes of them.

  Attributes:
    candidates: C of them, in the order in which they were screened.
    front: see `records.Tuning`.
    sequence: see `records.Tuning`.
    paper: see `records.Tuning`.
  """

  candidates: tuple[records.TunedCandidate, ...]
  front: tuple[int, ...]
  sequence: tuple[int, ...]
  paper: int | None


def screened(
  columns: Sequence[Column],
  measured: Clocked,
  statistics: Mapping[str, Any],
  compared: str,
  least_gain: float,
) -> Screened:
  """Returns the front of what was screened, and what is to be tested of it.

  Args:
    columns: C of them, on the rows that screen.
    measured: their timings.
    statistics: promises, p-value and error rate.
    compared: the policy that the paper's CALM is shown for.
    least_gain: as for `TuningPlan`.
  """
  found = [
    column.record(timing)
    for column, timing in zip(columns, measured.candidates, strict=True)
  ]
  lossy = [c for c, column in enumerate(columns) if column.losses is not None]
  if not lossy:
    return Screened(tuple(found), (), (), None)
  to_beat = min(
    [measured.full.milliseconds_per_step]
    + [one.milliseconds for one in found if one.lossless]
  )
  screening = calibration.screen(
    tables_of([columns[c] for c in lossy]),
    [found[c].milliseconds for c in lossy],
    statistics['promises'],
    p_value=statistics['p_value'],
    time_to_beat=to_beat / least_gain,
  )
  for c, p_value in zip(lossy, screening.p_values, strict=True):
    found[c] = dataclasses.replace(found[c], screening_p_value=p_value)
  return Screened(
    tuple(found),
    tuple(lossy[place] for place in screening.front),
    tuple(lossy[place] for place in screening.sequence),
    _paper(columns, statistics, compared),
  )


def _paper(columns, statistics, compared: str) -> int | None:
  """Returns what CALM's own calibration chooses of a policy by these rows.

  With the paper's p-value and the grid of thresholds in its order, on the rows
  that screen: for comparison, it certifies nothing.
  """
  places = [
    place
    for place, column in enumerate(columns)
    if column.candidate.name == compared and column.losses is not None
  ]
  if not places:
    return None
  places.sort(key=lambda place: columns[place].candidate.place)
  tests = calibration.joint_p_values(
    tables_of([columns[place] for place in places]),
    statistics['promises'],
    p_value=calibration.hoeffding_bentkus,
  )
  passed = calibration.fixed_sequence()(tests, statistics['error_rate'])
  return places[max(passed)] if passed else None


def with_tests(
  tuning: records.Tuning, columns: Sequence[Column], p_values: Sequence[float]
) -> records.Tuning:
  """Returns a tuning with what the rows that test say, and with its choice.

  Args:
    tuning: as screened, its error rate that of the tests.
    columns: of the first candidates of its sequence.
    p_values: their p-values.
  """
  candidates = list(tuning.candidates)
  passed = True
  for place, column, p_value in zip(
    tuning.sequence, columns, p_values, strict=False
  ):
    passed = passed and p_value <= tuning.error_rate
    candidates[place] = dataclasses.replace(
      candidates[place],
      test_means=tuple(column.losses.mean(axis=1).tolist()),
      test_p_value=p_value,
      certified=passed,
    )
  may = [
    place
    for place, one in enumerate(candidates)
    if (one.certified or one.lossless)
    and one.milliseconds < tuning.full_milliseconds
  ]
  return dataclasses.replace(
    tuning,
    candidates=tuple(candidates),
    chosen=min(may, key=lambda c: candidates[c].milliseconds, default=None),
  )

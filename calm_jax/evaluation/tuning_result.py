"""What screening and testing found, as records and tables."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import calibration, decoding, quantisation, records
from calm_jax.evaluation.candidates import Candidate
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.tuning_clock import Clocked


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """What one half of the rows says of a candidate.

  Attributes:
    candidate: the candidate.
    losses: [K, n]; None where nothing can be lost.
    decoded: its decode; None where nothing can be lost.
  """

  candidate: Candidate
  losses: np.ndarray | None = None
  decoded: DecodedDataset | None = None

  @property
  def seconds(self) -> float:
    """What decoding it took."""
    return 0.0 if self.decoded is None else float(self.decoded.seconds.sum())

  def record(self, timing: records.TimingRow) -> records.TunedCandidate:
    """Returns it as screened, for the result."""
    one = self.candidate
    found = {}
    if self.losses is not None:
      found = {
        'screening_means': tuple(self.losses.mean(axis=1).tolist()),
        'mean_exit_layer': self.decoded.mean_exit_layer,
      }
    return records.TunedCandidate(
      policy=one.name,
      setting=one.setting,
      described=decoding.describe(one.policy, {}),
      weights=quantisation.describe_weights(one.weights),
      lossless=one.lossless,
      milliseconds=timing.milliseconds_per_step,
      speed_up=timing.speed_up,
      **found,
    )


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
) -> Screened:
  """Returns the front of what was screened, and what is to be tested of it.

  Args:
    columns: C of them, on the rows that screen.
    measured: their timings.
    statistics: promises, p-value and error rate.
    compared: the policy that the paper's CALM is shown for.
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
    time_to_beat=to_beat,
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


def tables_of(columns: Sequence[Column]) -> list[np.ndarray]:
  """Returns the losses of columns as K tables [n, J]."""
  return list(np.stack([column.losses for column in columns], axis=-1))


def loss_table(
  columns: Sequence[Column],
  losses: Sequence[ConsistencyLoss],
  example_ids: Sequence[str],
  fingerprint: Mapping[str, Any],
) -> records.LossTable:
  """Returns columns as a loss table, whose settings name their policies."""
  columns = [column for column in columns if column.losses is not None]
  tables = (
    tables_of(columns)
    if columns
    else [np.empty((len(example_ids), 0)) for _ in losses]
  )
  first, *others = losses
  return records.LossTable(
    losses=tables[0],
    settings=tuple(
      {'policy': one.candidate.name, 'setting': one.candidate.setting}
      for one in columns
    ),
    mean_exit_layers=np.array([c.decoded.mean_exit_layer for c in columns]),
    mean_layers_run=np.array([c.decoded.mean_layers_run for c in columns]),
    example_ids=tuple(example_ids),
    loss=first.name,
    fingerprint={
      **fingerprint,
      'loss': first.name,
      'metric': first.metric_name,
      'loss_range': first.loss_range,
    },
    others=tuple(
      records.OtherLoss(
        loss=loss.name, metric=loss.metric_name, loss_range=loss.loss_range
      )
      for loss in others
    ),
    other_losses=np.stack(tables[1:]) if others else None,
  )


def digest(content: Any) -> str:
  """Returns a hash of anything that JSON can hold."""
  text = json.dumps(records.to_jsonable(content), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]

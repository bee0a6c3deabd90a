"""Which calibrations have looked at which rows: a folder, one file for each.

A certificate holds with its error rate if its rows chose nothing before. Who
calibrates on them again, with other settings, after a look at what came out,
certifies too much too often; so every use is kept. A file is written whole or
not at all and named by what was tested, so that processes and jobs do not get
into each other's way, and the same calibration again is the same use.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax.records.decoding_contexts import setting_in_words
from calm_jax.records.json_files import (
  FORMAT_VERSION,
  from_jsonable,
  read_record,
  to_jsonable,
  write_json,
)
from calm_jax.records.promises import PromisedLoss

# Beside a run's checkpoints.
ROW_USES_NAME = 'calibration_uses'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowUse:
  """One calibration, as far as it looked at rows.

  Attributes:
    rows: a digest of the inputs, whatever their order.
    example_ids: N hashes of the inputs, by which overlaps are found.
    settings: J settings, in the order in which they are tested.
    loss: the name of the loss.
    metric: the metric that the loss is measured by.
    tolerance: the bound on the expected loss.
    error_rate: how often all certificates that count each other may be wrong,
      as asked for.
    p_value: its name, the seed included.
    procedure: the name of the multiple testing procedure.
    about: what was decoded: policy, parameters, sampler and the like.
    level: the error rate that the tests were made at; None while it is not
      settled, when all of `error_rate` counts as spent.
    format_version: of this schema.
    promises: of several losses that are bounded together; loss, metric and
      tolerance are then those of the first. () for one.
  """

  rows: str
  example_ids: tuple[str, ...]
  settings: tuple[Any, ...]
  loss: str
  metric: str
  tolerance: float
  error_rate: float
  p_value: str
  procedure: str
  about: dict[str, Any] = dataclasses.field(default_factory=dict)
  level: float | None = None
  format_version: int = FORMAT_VERSION
  promises: tuple[PromisedLoss, ...] = ()

  @property
  def key(self) -> str:
    """The same for the same calibration, whatever its level became."""
    content = to_jsonable(dataclasses.replace(self, level=None))
    if not self.promises:
      # As earlier versions named their files.
      del content['promises']
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  @property
  def spent(self) -> float:
    """How often its certificate may be wrong."""
    return self.error_rate if self.level is None else self.level

  def describe(self) -> str:
    """Says in one line what was tested."""
    ends = (self.settings[place] for place in (0, -1))
    mildest, last = map(setting_in_words, ends)
    grid = mildest if mildest == last else f'{mildest} to {last}'
    first = PromisedLoss(
      loss=self.loss, metric=self.metric, tolerance=self.tolerance
    )
    promised = [one.describe() for one in self.promises or (first,)]
    return (
      f'{" and ".join(promised)}, '
      f'{len(self.settings)} settings ({grid}), {self.p_value}, '
      f'{self.procedure}, error rate {self.spent:g}'
    )


def digest_of_rows(example_ids: Sequence[str]) -> str:
  """Returns a digest of which inputs there are, in whatever order."""
  text = ' '.join(sorted(example_ids))
  return 'sha256:' + hashlib.sha256(text.encode()).hexdigest()[:16]


def note_row_use(folder: str | os.PathLike, use: RowUse) -> None:
  """Writes a use, in place of what is there of the same calibration."""
  write_json(_path(folder, use), use)


def forget_row_use(folder: str | os.PathLike, use: RowUse) -> None:
  """Removes a use that came to nothing before any loss was seen."""
  _path(folder, use).unlink(missing_ok=True)


def find_row_use(folder: str | os.PathLike, use: RowUse) -> RowUse | None:
  """Returns what is noted of the same calibration, None if nothing is.

  Raises:
    ValueError: if its file cannot be read, naming it.
  """
  path = _path(folder, use)
  return read_record(path, RowUse) if path.exists() else None


def other_row_uses(folder: str | os.PathLike, use: RowUse) -> list[RowUse]:
  """Returns the other calibrations that looked at some of the same inputs.

  Raises:
    ValueError: if a file cannot be read, naming it.
  """
  ids = set(use.example_ids)
  others = [
    read_record(path, RowUse)
    for path in sorted(pathlib.Path(folder).glob('*.json'))
    if path != _path(folder, use)
  ]
  return [other for other in others if ids & set(other.example_ids)]


def _path(folder: str | os.PathLike, use: RowUse) -> pathlib.Path:
  return pathlib.Path(folder) / f'{use.key}.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowHistory:
  """What a certificate says of the use of its rows by others.

  Attributes:
    others: a line for each other calibration that looked at some of its rows
      before.
    spent: the error rates of those, added up, or what the user said they are.
    error_rate: what was asked for.
    counted: whether what was spent was taken off it before testing.
  """

  others: tuple[str, ...]
  spent: float
  error_rate: float
  counted: bool

  @property
  def level(self) -> float:
    """The error rate to test at; 0 where nothing is left."""
    if not self.counted:
      return self.error_rate
    # 0.05 - 0.03 is 0.020000000000000004.
    return max(0.0, round(self.error_rate - self.spent, 12))

  def describe(self) -> str:
    """Says it in a sentence or two."""
    number = len(self.others)
    if not number and not self.spent:
      return 'No other use of its rows was noted.'
    calibrations = 'calibration' if number == 1 else 'calibrations'
    who = f'{number} other {calibrations} had looked at rows of its own before'
    if number:
      who += f' ({"; ".join(self.others)})'
    if self.counted:
      return (
        f'{who}: the {self.spent:g} that they may be wrong was taken off the '
        f'error rate {self.error_rate:g}, which bounds all of them together, '
        'if none was chosen by the result of another.'
      )
    return (
      f'{who} and may be wrong besides: all together hold with probability at '
      f'least {max(0.0, 1 - self.spent - self.error_rate):g}, if none was '
      'chosen by the result of another.'
    )


def read_row_history(context: Mapping[str, Any]) -> RowHistory | None:
  """Returns what the context of a certificate says; None if nothing."""
  stored = context.get('row_history')
  if stored is None:
    return None
  return from_jsonable(RowHistory, stored, where='row_history')

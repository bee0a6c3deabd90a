"""The error rate that earlier uses of its rows leave to a calibration."""

import dataclasses
import json
import os

from calm_jax import checks, records
from calm_jax.processes import collectives

TOLD = 'told'
COUNTED = 'counted'


def check_spent(spent: str | float, error_rate: float) -> None:
  """Raises ValueError unless `spent` is one of those of `CalibrationPlan`."""
  if spent in (TOLD, COUNTED) or (
    checks.is_number(spent) and 0 <= spent < error_rate
  ):
    return
  raise ValueError(
    f'spent is {spent!r}; use {TOLD!r}, {COUNTED!r}, or what was spent of the '
    f'error rate, below {error_rate:g}'
  )


def history_of(
  use: records.RowUse,
  folder: str | os.PathLike | None,
  *,
  spent: str | float,
  share: collectives.Share,
) -> records.RowHistory:
  """Notes a use of rows, and returns what others had used them for.

  To be called before any loss is looked at, by all processes of the job.

  Args:
    use: the calibration; its level is not looked at.
    folder: where uses are kept; None for nowhere.
    spent: see `CalibrationPlan`.
    share: the processes; the first one reads and writes.

  Raises:
    ValueError: if what was spent is taken off the error rate and nothing is
      left of it.
  """
  found = b''
  if share.index == 0:
    history = _settled(use, folder, spent)
    found = json.dumps(records.to_jsonable(history)).encode()
  found = json.loads(share.gather(found)[0])
  history = records.from_jsonable(records.RowHistory, found)
  if history.level <= 0:
    raise ValueError(
      f'nothing is left of the error rate {history.error_rate:g} for these '
      f'rows. {history.describe()} Take rows not used so far, or a higher '
      'error rate (ERROR_RATE). What was begun goes on as the same use only '
      'with all that it was begun with, its p-value (P_VALUE) included'
    )
  return history


def _settled(
  use: records.RowUse, folder: str | os.PathLike | None, spent: str | float
) -> records.RowHistory:
  """Notes the use at its level; one that nothing is left for is not noted."""
  use = dataclasses.replace(use, level=None)
  before, others = None, []
  if folder is not None:
    before = records.find_row_use(folder, use)
    if before is None:
      # Seen by a job that begins now, and all of its error rate with it.
      records.note_row_use(folder, use)
    others = records.other_row_uses(folder, use)
  number = None if isinstance(spent, str) else spent
  history = records.RowHistory(
    others=tuple(other.describe() for other in others),
    spent=sum(other.spent for other in others) if number is None else number,
    error_rate=use.error_rate,
    counted=spent != TOLD,
  )
  if history.counted and before is not None and before.level is not None:
    # The same again: what came later takes nothing off it.
    history = dataclasses.replace(
      history, spent=round(use.error_rate - before.level, 12)
    )
  if folder is not None and history.level > 0:
    settled = dataclasses.replace(use, level=history.level)
    records.note_row_use(folder, settled)
  elif folder is not None and before is None:
    records.forget_row_use(folder, use)
  return history

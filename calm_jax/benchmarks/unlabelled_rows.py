"""Do rows without references save rows with references? Prediction-powered.

  python -m calm_jax.benchmarks.unlabelled_rows \
    --tables=e2e_nlg=runs/e2e_nlg/joint/loss_table.npz

Reads tables of calibrations that promised `textual` together with `risk` or
`signed`, and calibrates on draws of their rows (with replacement), with and
without rows beside them that have no references (`unlabelled_study`). Shown is
how many settings are certified on the mean, from the same number of rows with
references; `known` takes for the slope that of the whole table, which is the
best that a straight line can do. NumPy and SciPy only.
"""

import argparse
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.benchmarks import measured_rows, unlabelled_study
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.benchmarks.unlabelled_study import Study
from calm_jax.reporting import tables

# Rows with references, as a share of those without others, to look for as many
# settings.
_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7)


@dataclasses.dataclass(frozen=True)
class UnlabelledRow:
  """Mean numbers of settings that are certified.

  Attributes:
    run: the name of the table.
    loss: 'risk' or 'signed'.
    tolerance: of it.
    explained: what share of its variance the textual distance explains in a
      straight line, at the last setting whose risk is within the tolerance.
    labelled: n, rows with references.
    alone: settings certified from these alone.
    learnt: with others beside them, the slope told by earlier rows.
    known: with others beside them, by the slope of the whole table.
    saved: the share of the n rows that `known` may leave out and certify as
      many settings as they do alone; 0 where none.
  """

  run: str
  loss: str
  tolerance: float
  explained: float
  labelled: int
  alone: float
  learnt: float
  known: float
  saved: float


def measure(
  losses: Mapping[str, Mapping[str, np.ndarray]],
  *,
  tolerances: Sequence[float],
  sizes: Sequence[int],
  study: Study,
) -> Iterator[UnlabelledRow]:
  """Yields a row for each table, loss, tolerance and number of rows.

  Args:
    losses: name of a table -> name of a loss -> [N, J], 'textual' among them.
    tolerances: of the other losses.
    sizes: rows with references.
    study: how tables are drawn from.

  Raises:
    ValueError: for a table without textual distances, or without another loss.
  """
  for run, of_run in losses.items():
    others = [name for name in unlabelled_study.RANGES if name in of_run]
    if 'textual' not in of_run or not others:
      raise ValueError(
        f'{run} has losses {", ".join(of_run)}; it takes textual and risk or '
        'signed: calibrate with PROMISES of both'
      )
    for loss, tolerance, size in itertools.product(others, tolerances, sizes):
      yield _row(run, loss, of_run, tolerance, size, study)


def _row(run, loss, of_run, tolerance, size, study: Study) -> UnlabelledRow:
  x, y = of_run['textual'], of_run[loss]

  def certified(slope, share=1.0):
    number = round(size * share)
    return study.certified(
      x, y, tolerance, unlabelled_study.RANGES[loss], number, slope
    )

  alone = certified(None)
  known = [certified('known', share) for share in _SHARES]
  above = np.append(y.mean(axis=0) > tolerance, True)
  last = max(0, int(np.argmax(above)) - 1)
  return UnlabelledRow(
    run,
    loss,
    tolerance,
    explained=_explained(x[:, last], y[:, last]),
    labelled=size,
    alone=alone,
    learnt=certified('learnt'),
    known=known[0],
    saved=_saved(alone, known, x.shape[1]),
  )


def _explained(x: np.ndarray, y: np.ndarray) -> float:
  if not x.std() or not y.std():
    return float('nan')
  return float(np.corrcoef(x, y)[0, 1] ** 2)


def _saved(alone: float, known: Sequence[float], settings: int) -> float:
  """Returns where the settings certified fall below those alone."""
  if alone > settings - 0.01:
    return math.nan
  if not alone or known[0] < alone:
    return 0.0
  for (share, here), (less, there) in itertools.pairwise(
    zip(_SHARES, known, strict=True)
  ):
    if there < alone:
      part = (here - alone) / (here - there)
      return 1 - share + part * (share - less)
  return 1 - _SHARES[-1]


def table(measured: Measured) -> tables.Table:
  """Returns a line per row."""
  flags = measured.flags
  return tables.Table(
    header=(
      'run',
      'loss',
      'tolerance',
      'explained',
      'rows with references',
      'settings, alone',
      'with others, slope learnt',
      'slope known',
      'rows saved',
    ),
    rows=tuple(
      (
        row.run,
        row.loss,
        f'{row.tolerance:g}',
        f'{row.explained:.0%}',
        f'{row.labelled:,}',
        *(f'{x:.2f}' for x in (row.alone, row.learnt, row.known)),
        'all certified' if math.isnan(row.saved) else f'{row.saved:.0%}',
      )
      for row in measured.rows
    ),
    notes=(
      f'settings certified, means of {flags["draws"]} draws, with '
      f'{flags["others"]} rows without references for each one with them.',
    ),
  )


def read_losses(
  path: str | os.PathLike, max_settings: int
) -> dict[str, np.ndarray]:
  """Reads the losses of a table by name, of settings that were decoded.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no loss table, or no setting of it was decoded.
  """
  found = records.read_loss_table(path)
  gaps = np.append(~found.computed, True)
  number = min(int(np.argmax(gaps)), max_settings)
  if not number:
    raise ValueError(f'{os.fspath(path)} has no losses of its first setting')
  return {one.loss: one.losses[:, :number] for one in found.alone()}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('unlabelled_rows', __doc__ or '')
  add: Any = parser.add
  add('tables', None, 'name=loss table, by commas', required=True)
  add('max_settings', 16, 'settings of a table, the first ones', type=int)
  add('tolerances', '0.02', 'of risk and signed losses, by commas')
  add('sizes', '300,1000,3000', 'rows with references, by commas')
  add('others', 10, 'rows without, for each one with them', type=int)
  add('error_rate', 0.05, 'how often it may be wrong', type=float)
  add('draws', 300, 'calibrations per number', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _measure(flags: argparse.Namespace) -> Iterator[UnlabelledRow]:
  """Measures what the flags name."""
  pairs = [item.split('=', 1) for item in flags.tables.split(',')]
  losses = {name: read_losses(path, flags.max_settings) for name, path in pairs}
  return measure(
    losses,
    tolerances=[float(text) for text in flags.tolerances.split(',')],
    sizes=[int(text) for text in flags.sizes.split(',')],
    study=Study(
      others=flags.others,
      num_draws=flags.draws,
      error_rate=flags.error_rate,
    ),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Calibrates, writes and prints."""
  flags = _parse(arguments)
  measured_rows.publish_simulated(lambda: _measure(flags), flags, table)


if __name__ == '__main__':
  main()

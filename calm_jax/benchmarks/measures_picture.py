"""Draws what confidence measures lose against how deep their tokens go.

  python -m calm_jax.benchmarks.measures_picture --run_dir=runs/e2e_nlg \
    --tables=measures/margin/textual,measures/wide_0/textual \
    --names='softmax margin,gate' --oracle=wide_0/evaluation.json --costs \
    --output=measures.json --picture=measures.png

Reads loss tables that `calm_jax.cli.calibrate` left in the run, of one loss and
of the same inputs, and decodes nothing. One line is one table, over those of
its thresholds that were decoded (all with --gin.FULL_GRID=True); marked are the
settings that it certifies at the tolerances, the full model and, of an
evaluation of `calm_jax.cli.train_gates`, the oracle: the first layer that says
the last one's token, on the tokens of that evaluation. --costs adds what a
token costs by the ledger, checks included, in decoder layers.

  python -m calm_jax.benchmarks.measures_picture --show=measures.json \
    --picture=measures.png

draws what was written before.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from calm_jax import records, reporting
from calm_jax.benchmarks import (
  measure_lines,
  measured_rows,
  measures_table,
)
from calm_jax.benchmarks.arguments import Arguments


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('measures_picture', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('title', None, 'what the picture calls it; its folder if not given')
  add('tables', '', 'folders of calibrations in the run, by commas')
  add('names', '', 'what to call them, by commas; their measures if not given')
  add('oracle', None, 'in the run, an evaluation.json of train_gates')
  add('tolerances', '0.05,0.1', 'at which certified settings are marked')
  add('error_rate', 0.05, 'how often a certificate may be wrong', type=float)
  parser.add_argument(
    '--costs', action='store_true', help='costs by the ledger as well'
  )
  add('output', None, 'a JSON file to write')
  add('show', None, 'draw this JSON file, and read no run')
  add('picture', None, 'an image file to write')
  return parser.parse_args(arguments)


def _read(flags: argparse.Namespace) -> measured_rows.Measured:
  """Reads what the flags name."""
  if flags.show is not None:
    return measured_rows.read(flags.show, records.MeasureLine)
  if flags.run_dir is None or not flags.tables:
    raise ValueError('give --run_dir and --tables, or --show')
  rows = measure_lines.of_run(
    flags.run_dir,
    flags.tables.split(','),
    names=flags.names.split(',') if flags.names else None,
    title=flags.title or os.path.basename(os.path.normpath(flags.run_dir)),
    oracle=flags.oracle,
    tolerances=[float(one) for one in flags.tolerances.split(',')],
    error_rate=flags.error_rate,
    with_costs=flags.costs,
  )
  return measured_rows.of_this_process(
    rows, flags, device='none', dtype='float64', libraries=('numpy', 'calm_jax')
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads, writes, prints and draws."""
  flags = _parse(arguments)
  try:
    measured = _read(flags)
  except (OSError, ValueError) as error:
    sys.exit(f'measures_picture: {error}')
  measured_rows.publish(measured, measures_table.table, flags.output)
  if flags.picture:
    figure = reporting.measures_figure(measured.rows)
    reporting.save_figure(figure, flags.picture, dpi=105)


if __name__ == '__main__':
  main()

"""The table of oracles over routes."""

import math

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs, scores in points of 100."""
  first = measured[0]
  rows = [row for one in measured for row in one.rows]
  return tables.Table(
    header=(
      'run',
      'score, outputs',
      'layers',
      'first layers',
      'evenly',
      'random, 5 to 95 %',
      'best single',
      'blind mix',
      'oracle',
      'by the other half',
      'gain if dealt out',
    ),
    rows=tuple(_cells(row) for row in rows),
    notes=(
      'layers: the budget of an input, on the mean. Scores are means in points '
      f'by {tables.metric_name(rows[0].metric)}: quality to the references, '
      "consistency to the full model's greedy output, over "
      f'{first.flags["num_inputs"]} inputs.',
      'best single: of all routes within the budget the one that is best for '
      'all inputs together; blind mix: likewise the best two, a deeper one for '
      'as many inputs as the budget allows, whichever they are; oracle: the '
      'best one for each input, by its score.',
      f'sampled: {first.flags["num_samples"]} outputs of each route and input '
      f'at temperature {first.flags["temperature"]:g}; routes are chosen by '
      'one half of them and judged by the other one, the oracle by both: by '
      'the other one with the standard error of what it is above the mix.',
      'gain if dealt out: of the oracle over the mix, after what routes are to '
      'single inputs was dealt out to others, a gain by luck.',
      *dict.fromkeys(map(_matches, rows)),
    ),
  )


def _cells(row: records.OracleRow) -> tuple[str, ...]:
  low, middle, high = map(_points, row.random)
  other = '-'
  if not math.isnan(row.held_out):
    other = f'{_points(row.held_out)} ± {_points(row.gain_error)}'
  return (
    row.run,
    f'{row.score}, {row.decoding}',
    f'{row.budget:g}',
    _points(row.early_exit),
    _points(row.uniform),
    '-' if math.isnan(row.random[1]) else f'{middle} ({low} to {high})',
    _points(row.single),
    _points(row.mix),
    _points(row.oracle),
    other,
    _points(row.luck),
  )


def _points(share: float) -> str:
  # Adding 0 makes 0 of what rounds to -0.
  return '-' if math.isnan(share) else f'{round(100 * share, 1) + 0:.1f}'


def _matches(row: records.OracleRow) -> str:
  """Says from which budget on the full model's score is reached."""
  who = 'the oracle' if row.decoding == 'greedy' else 'by the other half it'
  what = f'{row.run}, {row.score} of {row.decoding} outputs: the full model has'
  if math.isnan(row.matches_full):
    return f'{what} {_points(row.full)}, which no budget here reaches.'
  return (
    f'{what} {_points(row.full)}, {who} reaches it with '
    f'{row.matches_full:.2f} layers.'
  )

"""The table of serving: throughput and inner-token latency by batch size."""

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs."""
  first = measured[0]
  return tables.Table(
    header=(
      'run',
      'slots',
      'serving',
      'look every',
      'mean layers',
      'tokens per second',
      'ms between tokens',
      'median',
      '99th percentile',
    ),
    rows=tuple(
      _cells(row, _full_of(one.rows, row))
      for one in measured
      for row in one.rows
    ),
    notes=(
      'tokens per second: emitted tokens over wall clock, encoder included, '
      f'median of {first.flags["num_repeats"]} turns, on {first.machine}; in '
      'brackets over the full model looked at after every token, in as many '
      'slots.',
      'ms between tokens: from one token of a request to its next, the mean '
      'over all of them; in brackets how many times less than with that model. '
      'Tokens of one look arrive together, 0 apart.',
    ),
  )


def _full_of(
  rows: tuple[records.ServingRow, ...], row: records.ServingRow
) -> records.ServingRow:
  """Returns the first row of the same number of slots."""
  return next(one for one in rows if one.batch_size == row.batch_size)


def _cells(
  row: records.ServingRow, full: records.ServingRow
) -> tuple[str, ...]:
  faster = row.tokens_per_second / full.tokens_per_second
  sooner = full.wait_mean / row.wait_mean if row.wait_mean else float('nan')
  return (
    row.run,
    f'{row.batch_size}',
    row.way,
    'token' if row.steps == 1 else f'{row.steps} tokens',
    f'{row.mean_exit_layer:.2f}',
    f'{row.tokens_per_second:.0f} ({faster:.2f}x)',
    f'{row.wait_mean:.2f} ({sooner:.2f}x)',
    f'{row.wait_median:.2f}',
    f'{row.wait_99:.2f}',
  )

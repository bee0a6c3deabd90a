"""Renders a speed report as a table: wall clock beside what bounds it."""

from calm_jax import records
from calm_jax.reporting import tables


def speed_table(report: records.SpeedReport) -> tables.Table:
  """Returns the table of everything that was measured."""
  rows = [
    (
      f'{row.shape}: {row.name}',
      str(row.batch_size),
      row.depth_loop,
      row.cache_fill,
      f'{row.mean_exit_layer:.2f}',
      f'{row.milliseconds_per_step:.2f}',
      f'{row.milliseconds_per_step / row.bound:.2f}',
      f'{row.speed_up:.2f}x',
      f'{row.ceiling:.2f}x',
      f'{row.compile_seconds:.1f}',
    )
    for row in report.rows
  ]
  return tables.Table(
    header=(
      'decoding',
      'batch',
      'depth loop',
      'fill',
      'mean layers',
      'ms per step',
      'of the bound',
      'speed-up',
      'ceiling',
      'compile s',
    ),
    rows=tuple(rows),
    notes=(
      'ms per step: wall clock of a decode over its '
      f'{report.target_length} steps, one token for each row, encoder of '
      f'{report.source_length} tokens included; median of '
      f'{report.num_repeats} turns, on {report.context.device} '
      f'({report.context.machine}) in {report.context.dtype}.',
      'of the bound: over what its weights, keys and values alone take at the '
      f'{report.bandwidth:.1f} GB/s measured in the same run.',
      'speed-up: of the fastest full decode of the same shape and batch over '
      'this one; ceiling: the same ratio of their memory traffic.',
    ),
  )


def render_speed_markdown(report: records.SpeedReport) -> str:
  """Renders the report for a README."""
  table = speed_table(report)
  notes = '\n'.join(f'- {note}' for note in table.notes)
  return f'{tables.as_markdown(table)}\n\n{notes}\n'

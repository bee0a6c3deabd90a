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
      tables.number(row.milliseconds_per_step / row.parts, 2),
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
      'of its parts',
      'speed-up',
      'ceiling',
      'compile s',
    ),
    rows=tuple(rows),
    notes=(
      'ms per step: wall clock over the '
      f'{report.target_length} steps of a decode, one token for each row, '
      'without the encoder, which takes '
      f'{_listed(report)} for sources of {report.source_length} tokens; '
      f'median of {report.num_repeats} turns, on {report.context.device} '
      f'({report.context.machine}) in {report.context.dtype}.',
      'of the bound: over what its weights, keys and values alone take at the '
      f'{report.bandwidth:.1f} GB/s measured in the same run.',
      'of its parts: over what full depth says its head, its fill of all '
      'layers and a share of the rest would take.',
      'speed-up: of the fastest full decode of the same shape and batch over '
      'this one; ceiling: the same ratio of their memory traffic.',
    ),
  )


def _listed(report: records.SpeedReport) -> str:
  """Writes how long the encoder takes, by shape and batch size."""
  starts: dict[tuple[str, int], float] = {}
  for row in report.rows:
    key = row.shape, row.batch_size
    starts[key] = min(
      row.start_milliseconds, starts.get(key, row.start_milliseconds)
    )
  return ', '.join(
    f'{milliseconds:.0f} ms ({shape}, batch {batch_size})'
    for (shape, batch_size), milliseconds in starts.items()
  )


def render_speed_markdown(report: records.SpeedReport) -> str:
  """Renders the report for a README."""
  table = speed_table(report)
  notes = '\n'.join(f'- {note}' for note in table.notes)
  return f'{tables.as_markdown(table)}\n\n{notes}\n'

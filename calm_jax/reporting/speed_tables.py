"""Renders speed reports as a table: wall clock beside what bounds it."""

import dataclasses
from collections.abc import Iterable

from calm_jax import records
from calm_jax.reporting import tables


def speed_table(*reports: records.SpeedReport) -> tables.Table:
  """Returns the table of everything that one or several runs measured."""
  context = reports[0].context
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
    rows=tuple(_cells(row) for report in reports for row in report.rows),
    notes=(
      'ms per step: wall clock over the '
      f'{_each(report.target_length for report in reports)} steps of a decode, '
      'one token for each row, without the encoder, which takes '
      f'{_starts(reports)} for sources of '
      f'{_each(report.source_length for report in reports)} tokens; median of '
      f'{_each(report.num_repeats for report in reports)} turns, on '
      f'{context.device} ({context.machine}) in {context.dtype}.',
      'of the bound: over what its weights, keys and values alone take at the '
      f'{_each(f"{report.bandwidth:.1f}" for report in reports)} GB/s measured '
      'in the same run.',
      'of its parts: over what full depth says its head, its fill of all '
      'layers and a share of the rest would take.',
      f'{tables.SPEED_UP_NOTE}, at the same shape and batch; ceiling: the same '
      'ratio of their memory traffic.',
    ),
  )


def fastest_rows(report: records.SpeedReport) -> records.SpeedReport:
  """Returns the report with the fastest depth loop of every way of decoding."""
  fastest: dict[tuple, records.SpeedRow] = {}
  for row in report.rows:
    way = row.shape, row.batch_size, row.name, row.cache_fill
    fastest[way] = min(
      fastest.get(way, row), row, key=lambda one: one.milliseconds_per_step
    )
  return dataclasses.replace(report, rows=tuple(fastest.values()))


def render_speed_markdown(report: records.SpeedReport) -> str:
  """Renders the report for a README."""
  return tables.with_notes(speed_table(report)) + '\n'


def _cells(row: records.SpeedRow) -> tuple[str, ...]:
  return (
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


def _each(values: Iterable[object]) -> str:
  """Writes the different ones of one value per report."""
  *others, last = dict.fromkeys(map(str, values))
  return f'{", ".join(others)} or {last}' if others else last


def _starts(reports: Iterable[records.SpeedReport]) -> str:
  """Writes how long the encoder takes, by shape and batch size."""
  starts: dict[tuple[str, int], float] = {}
  for report in reports:
    for row in report.rows:
      key = row.shape, row.batch_size
      starts[key] = min(
        row.start_milliseconds, starts.get(key, row.start_milliseconds)
      )
  return ', '.join(
    f'{milliseconds:.0f} ms ({shape}, batch {batch_size})'
    for (shape, batch_size), milliseconds in starts.items()
  )

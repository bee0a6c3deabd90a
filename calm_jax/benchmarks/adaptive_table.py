"""The table of adaptive systems beside each other."""

import math

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


def table(*measured: Measured, every: bool = False) -> tables.Table:
  """Returns the one table of all models.

  Args:
    *measured: of `benchmarks.adaptive_systems`.
    every: with the settings that were not timed, too.
  """
  rows = [row for one in measured for row in one.rows]
  sizes = sorted({clock.batch_size for row in rows for clock in row.clocks})
  if not every and sizes:
    rows = [
      row for row in rows if row.clocks or row.system == records.ORACLE_SYSTEM
    ]
  return tables.Table(
    header=(
      'data',
      'model',
      'system',
      'setting',
      'certified',
      'distance',
      'quality',
      'layers',
      'FLOPs %',
      'bytes %',
      *(f'batch {size}' for size in sizes),
    ),
    rows=tuple(_cells(row, sizes) for row in rows),
    notes=(
      'certified: the mean loss is at most this by a certificate, and (in '
      'brackets) what it is here. distance: mean textual loss (1 - '
      "similarity) against the model's own full decode; quality: similarity to "
      f'the references, in points. {_inputs(measured)}',
      'layers: run per token, those of earlier positions that catch up '
      'included; FLOPs and bytes: of the decoder per token by the ledger over '
      "the full decode's, bytes of a row alone. Both without what is done once "
      'per request.',
      *_about_clocks(measured, sizes),
    ),
  )


def _about_clocks(
  measured: tuple[Measured, ...], sizes: list[int]
) -> tuple[str, ...]:
  """Returns notes on the clock, none where nothing was timed."""
  if not sizes:
    return ()
  return (
    f'batch: milliseconds per token on {measured[0].machine}, with its share '
    'of the encoder; in brackets the speed-up over our fastest full decode '
    'of the same inputs, measured in turns with it.',
    f'Timed are certified settings, and of every system the one of the least '
    f'arithmetic that loses at most {_drops(measured)} of quality; where '
    'there is none, its best one.',
  )


def _drops(measured: tuple[Measured, ...]) -> str:
  drops = sorted({one.flags['quality_drop'] for one in measured})
  points = ' or '.join(f'{drop:g}' for drop in drops)
  return f'{points} point' + ('' if points == '1' else 's')


def _inputs(measured: tuple[Measured, ...]) -> str:
  found = {}
  for one in measured:
    full = next(row for row in one.rows if row.system == records.FULL_SYSTEM)
    metric = tables.metric_name(full.metric)
    found[f'{full.run} on {one.flags["num_inputs"]} by {metric}'] = None
  return 'Inputs: ' + ', '.join(found) + '.'


def _cells(row: records.SystemRow, sizes: list[int]) -> tuple[str, ...]:
  clocks = {clock.batch_size: clock for clock in row.clocks}
  return (
    row.run,
    row.model,
    row.system,
    row.setting or '-',
    ' and '.join(map(_outcome, row.outcomes)) or '-',
    _number(row.distance, 4),
    _number(row.quality, 1),
    _number(row.mean_layers, 2),
    _number(100 * row.flops, 0),
    _number(100 * row.bytes, 0),
    *(_clock(clocks.get(size)) for size in sizes),
  )


def _outcome(one: records.PromiseOutcome) -> str:
  return f'{one.loss} {one.tolerance:g} ({one.mean:.3f})'


def _number(value: float, digits: int) -> str:
  return '-' if math.isnan(value) else f'{value:.{digits}f}'


def _clock(clock: records.ArenaClock | None) -> str:
  if clock is None:
    return '-'
  return f'{clock.milliseconds_per_token:.2f} ({clock.speed_up:.2f}x)'

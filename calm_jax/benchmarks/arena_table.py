"""The table of the arena."""

import math

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


def table(*measured: Measured) -> tables.Table:
  """Returns the one table of all runs."""
  sizes = sorted(
    {
      clock.batch_size
      for one in measured
      for row in one.rows
      for clock in row.clocks
    }
  )
  return tables.Table(
    header=(
      'model',
      'decoding',
      'promised',
      'kept here',
      'distance',
      'quality',
      'layers',
      'cost %',
      *(f'ms per token at batch {size}' for size in sizes),
    ),
    rows=tuple(_cells(row, sizes) for one in measured for row in one.rows),
    notes=(
      f'promised: the mean loss is at most this, with {_odds(measured)} over '
      "the draw of the inputs calibrated on; lossless: the full model's "
      'outputs. Kept here: whether it is so on these inputs.',
      'distance: mean textual loss (1 - similarity) against the full model; '
      'quality: similarity to the references, in points. ' + _inputs(measured),
      'layers: run per token, those of earlier positions that catch up '
      "included; cost: arithmetic of the decoder over the full model's.",
      f'ms per token: with its share of the encoder, on {measured[0].machine}; '
      'in brackets the speed-up over our fastest full decode of the same '
      'inputs, without any checks.',
      *_of_t5x(measured),
    ),
  )


def _of_t5x(measured: tuple[Measured, ...]) -> list[str]:
  """Returns what there is to know of T5X's CALM, if it was there."""
  found = [
    f'{row.name} on {row.run} {100 * row.same_outputs:.1f} % ({row.same_as})'
    for one in measured
    for row in one.rows
    if row.same_as
  ]
  if not found:
    return []
  return [
    "T5X's CALM lets a batch leave when its least confident row may, those "
    'that have ended included: distance, quality and layers are of inputs '
    'decoded one by one, and layers in brackets those of that batch size. Its '
    f'outputs are token by token ours for {"; ".join(found)}.'
  ]


def _odds(measured: tuple[Measured, ...]) -> str:
  rates = {row.error_rate for one in measured for row in one.rows}
  odds = sorted(f'{1 - rate:g}' for rate in rates if not math.isnan(rate))
  return f'probability {" or ".join(odds)}' if odds else 'some probability'


def _inputs(measured: tuple[Measured, ...]) -> str:
  found = []
  for one in measured:
    row = one.rows[0]
    found.append(f'{row.run} on {one.flags["num_inputs"]} by {row.metric}')
  return 'Inputs: ' + ', '.join(found) + '.'


def _cells(row: records.ArenaRow, sizes: list[int]) -> tuple[str, ...]:
  promised = ' and '.join(
    f'{one.loss} {one.tolerance:g}' for one in row.outcomes
  )
  if not promised:
    promised = 'lossless' if row.kind == 'lossless' else '-'
  clocks = {clock.batch_size: clock for clock in row.clocks}
  return (
    row.run,
    row.name.removesuffix(f', {promised}'),
    promised,
    {True: 'yes', False: 'no', None: '-'}[row.kept],
    f'{row.distance:.4f}',
    f'{row.quality:.1f}',
    '-' if math.isnan(row.mean_layers) else f'{row.mean_layers:.2f}',
    '-' if math.isnan(row.cost) else f'{100 * row.cost:.0f}',
    *(_clock(clocks.get(size), row) for size in sizes),
  )


def _clock(clock: records.ArenaClock | None, row: records.ArenaRow) -> str:
  if clock is None:
    return '-'
  worth = f'{clock.speed_up:.2f}x'
  layers = clock.mean_layers
  # The row has those of a batch of one.
  if clock.batch_size > 1 and not math.isnan(layers):
    worth += f', {layers:.2f} layers' if layers != row.mean_layers else ''
  return f'{clock.milliseconds_per_token:.2f} ({worth})'

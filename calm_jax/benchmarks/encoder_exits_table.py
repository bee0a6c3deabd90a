"""The table of exits of an encoder's classifier."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.records import EncoderExitRow
from calm_jax.reporting import tables


def times_of(row: EncoderExitRow, full: EncoderExitRow) -> list[str]:
  """Returns its times in words, with speed-ups over the full encoder."""
  return [
    f'{mine:.2f} ({theirs / mine:.2f}x)' if mine == mine else '-'
    for mine, theirs in zip(row.milliseconds, full.milliseconds, strict=True)
  ]


def by_key(
  measured: Sequence[Measured],
) -> dict[Any, list[tuple[Measured, EncoderExitRow]]]:
  """Returns rows that differ by the seed of their training alone, together."""
  found: dict = {}
  for one in measured:
    # Those that one file has twice are no two seeds.
    times: collections.Counter = collections.Counter()
    for row in one.rows:
      times[row.key] += 1
      found.setdefault((row.key, times[row.key]), []).append((one, row))
  return found


def table(*measured: Measured, every: bool = False) -> tables.Table:
  """Returns the table of runs; speed-ups are over the full encoder of a file.

  Files of one run are of several seeds: a row has their means.

  Args:
    *measured: what `encoder_exits` measured.
    every: show settings that nothing certifies beside those that are, too.
  """
  sizes = sorted(
    {size for one in measured for size in one.flags['batch_sizes']}
  )
  certified = any(row.certified for one in measured for row in one.rows)
  groups = [
    group
    for group in by_key(measured).values()
    if every or not certified or group[0][1].certified or group[0][1].full
  ]
  most = max(map(len, groups))
  timed = next(
    (one for one in measured if one.flags['batch_sizes']), measured[0]
  )
  return tables.Table(
    header=(
      'run',
      'exit rule',
      'setting',
      'accuracy %',
      'as the last layer %',
      'mean layers',
      *(f'ms at batch {size}' for size in sizes),
    ),
    rows=tuple(_line(group, sizes) for group in groups),
    notes=(
      '; '.join(
        f'{run}: {details["num_inputs"]:,} inputs of '
        f'{details["num_classes"]} classes, {details["num_layers"]} encoder '
        'layers'
        for run, details in {
          one.rows[0].run: one.context.details for one in measured
        }.items()
      )
      + '.',
      *(
        [f'±: half of the range over {most} trainings with other seeds.']
        if most > 1
        else []
      ),
      'ms: of a batch, ids to classes, the median of turns on the same inputs, '
      'by the fastest loop; the speed-up is over the full encoder with the '
      f'head of its last layer. {timed.machine}.',
    ),
  )


def _line(
  group: Sequence[tuple[Measured, EncoderExitRow]], sizes: Sequence[int]
) -> tuple[str, ...]:
  rows = [row for _, row in group]
  row = rows[0]
  settings = '; '.join(dict.fromkeys(one.setting for one in rows))
  said = dataclasses.replace(row, setting=settings).said
  return (
    row.run,
    row.rule,
    said,
    _spread([100 * one.accuracy for one in rows], '{:.1f}'.format),
    _spread([100 * one.agreement for one in rows], '{:.1f}'.format),
    _spread([one.mean_layers for one in rows], '{:.2f}'.format),
    *(_time(group, size) for size in sizes),
  )


def _spread(values: Sequence[float], write: Callable[[float], str]) -> str:
  """Writes the mean, and half of the range of several."""
  mean = write(math.fsum(values) / len(values))
  if len(values) == 1:
    return mean
  return f'{mean} ± {write((max(values) - min(values)) / 2)}'


def _time(group: Sequence[tuple[Measured, EncoderExitRow]], size: int) -> str:
  """Returns the time of the first of a group that has one."""
  for one, row in group:
    if size in one.flags['batch_sizes'] and row.milliseconds:
      place = one.flags['batch_sizes'].index(size)
      if not math.isnan(row.milliseconds[place]):
        return times_of(row, one.rows[0])[place]
  return '-'

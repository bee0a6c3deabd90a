"""What 8-bit weights are worth on the clock: the rows, and their table."""

import dataclasses
import math

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class WeightsRow:
  """One way of decoding whole requests of one shape and batch size.

  Attributes:
    shape: the model.
    name: weights and depths, or another program.
    batch_size: B.
    depth_loop: '-' for other programs.
    mean_exit_layer: decoder layers per token.
    milliseconds_per_step: wall clock of the whole request, encoder included,
      over the T tokens of an output.
    speed_up: of the float model at full depth over it.
    over_ctranslate2_int8: of CTranslate2 in 8 bits; NaN where it did not run.
    megabytes: of all parameters as loaded, 1e6 bytes each; NaN for other
      programs.
  """

  shape: str
  name: str
  batch_size: int
  depth_loop: str
  mean_exit_layer: float
  milliseconds_per_step: float
  speed_up: float
  over_ctranslate2_int8: float = math.nan
  megabytes: float = math.nan


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs."""
  flags = measured[0].flags
  rows = [row for one in measured for row in one.rows]
  lines = [
    (
      f'{row.shape}: {row.name}',
      str(row.batch_size),
      row.depth_loop,
      f'{row.mean_exit_layer:.2f}',
      f'{row.milliseconds_per_step:.2f}',
      _times(row.speed_up),
      _times(row.over_ctranslate2_int8),
      tables.number(row.megabytes, 1),
    )
    for row in rows
  ]
  return tables.Table(
    header=(
      'decoding',
      'batch',
      'depth loop',
      'mean layers',
      'ms per step',
      'speed-up',
      'over CTranslate2 int8',
      'MB of parameters',
    ),
    rows=tuple(lines),
    notes=(
      'ms per step: wall clock of whole requests, encoder included, over the '
      f'{flags["target_length"]} tokens of an output, for sources of '
      f'{flags["source_length"]}; the median of {flags["num_repeats"]} turns, '
      f'all of one shape and batch in turns, on {measured[0].machine}.',
      'speed-up: of the float model at full depth, by its fastest depth loop.',
      'MB of parameters: as loaded, matrices and everything else.',
    ),
  )


def _times(ratio: float) -> str:
  return '-' if math.isnan(ratio) else f'{ratio:.2f}x'

"""Devices with equally many rows each: what was measured, and its table."""

import dataclasses

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class ScalingRow:
  """One number of devices.

  Attributes:
    num_devices: how many decode.
    num_rows: rows of all of them.
    tokens_per_second: of all of them.
    of_one_device: the same over what one device with as many rows makes.
  """

  num_devices: int
  num_rows: int
  tokens_per_second: float
  of_one_device: float


def table(measured: Measured) -> tables.Table:
  """Returns the table."""
  flags = measured.flags
  rows = [
    (
      str(row.num_devices),
      str(row.num_rows),
      f'{row.tokens_per_second:.0f}',
      f'{row.of_one_device:.2f}',
    )
    for row in measured.rows
  ]
  return tables.Table(
    header=('devices', 'rows', 'tokens/s', 'of one device with as many rows'),
    rows=tuple(rows),
    notes=(
      f'tokens/s: {flags["shape"]}, {flags["source_length"]} source and '
      f'{flags["target_length"]} target tokens, forced depths, median of '
      f'{flags["num_repeats"]} turns, on {measured.machine}.',
    ),
  )

"""The table of results: what was promised, and what it is worth on the clock.

Of each certificate the faster cache fill, beside the full model and the other
programs that decoded the same inputs with the same weights.
"""

import math
from collections.abc import Iterator, Mapping

from calm_jax.benchmarks import certified_table
from calm_jax.benchmarks.certified_table import CertifiedRow
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables

_DEFERRED = ', deferred fill'


def table(measured: Mapping[str, Measured]) -> tables.Table:
  """Returns the table of runs of `certified_speed`, named in words."""
  first = next(iter(measured.values()))
  return tables.Table(
    header=(
      'model',
      'decoding',
      'certified',
      'mean layers',
      'speed-up',
      'same tokens %',
    ),
    rows=tuple(
      cells for model, run in measured.items() for cells in _rows(model, run)
    ),
    notes=(
      'certified: what holds on inputs like those calibrated on; the '
      'probability is over their draw.',
      'mean layers: decoder layers per token.',
      f'speed-up: of {first.flags["num_inputs"]} inputs at batch '
      f'{first.flags["batch_sizes"]}, on {first.machine}.',
      "same tokens: the full model's tokens that are decoded, too.",
    ),
  )


def _rows(model: str, measured: Measured) -> Iterator[tuple[str, ...]]:
  full = measured.rows[0]
  for row in _faster_fills(measured.rows):
    name = row.name
    if not math.isnan(row.threshold):
      # The promise tells certificates of one policy apart.
      name = name.replace(f' at {row.threshold:g}', '')
      name = f'{name}, threshold {row.threshold:g}'
    yield (
      model,
      name,
      certified_table.promise(row),
      f'{row.mean_exit_layer:.2f} of {full.mean_exit_layer:.0f}',
      f'{row.speed_up:.2f}x',
      f'{100 * row.same_tokens:.1f}',
    )


def _faster_fills(rows: tuple[CertifiedRow, ...]) -> list[CertifiedRow]:
  """Returns one row for each name but for its fill, the faster one."""
  faster: dict[str, CertifiedRow] = {}
  for row in rows:
    name = row.name.removesuffix(_DEFERRED)
    faster[name] = max(faster.get(name, row), row, key=lambda one: one.speed_up)
  return list(faster.values())

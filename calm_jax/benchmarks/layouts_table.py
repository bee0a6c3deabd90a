"""Which way a matrix lies best: the rows, and their table."""

import dataclasses

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class LayoutRow:
  """One matrix of a decoder step and one number of positions.

  Attributes:
    shape: the model.
    matrix: whose weights.
    num_inputs: I.
    num_outputs: O.
    positions: P, rows of the batch or positions of a block.
    kept_milliseconds: of a product with the weights as they are kept.
    other_milliseconds: with the weights transposed.
    kept_as: 'I, O' or 'O, I'.
  """

  shape: str
  matrix: str
  num_inputs: int
  num_outputs: int
  positions: int
  kept_milliseconds: float
  other_milliseconds: float
  kept_as: str


def table(measured: Measured) -> tables.Table:
  """Returns the table: a line per matrix, a column per number of positions."""
  by_matrix: dict[tuple, dict[int, LayoutRow]] = {}
  for row in measured.rows:
    key = (row.shape, row.matrix, row.num_inputs, row.num_outputs, row.kept_as)
    by_matrix.setdefault(key, {})[row.positions] = row
  counts = sorted({row.positions for row in measured.rows})
  lines = []
  for (shape, matrix, num_inputs, num_outputs, kept), rows in by_matrix.items():
    cells = []
    for count in counts:
      row = rows[count]
      share = row.other_milliseconds / row.kept_milliseconds
      cells.append(f'{row.kept_milliseconds:.2f} ({share:.2f})')
    lines.append(
      (f'{shape}: {matrix}', f'{num_inputs} -> {num_outputs}', kept, *cells)
    )
  return tables.Table(
    header=('matrix', 'size', 'kept as', *(f'P = {count}' for count in counts)),
    rows=tuple(lines),
    notes=(
      'ms of one product of P positions with float32 weights as they are kept, '
      'and in brackets how much longer it takes with them transposed.',
      f'medians of {measured.flags["num_repeats"]} turns, matrices too many '
      f'for the caches, on {measured.machine}.',
    ),
  )

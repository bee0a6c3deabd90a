"""The table of parameters that a run writes: names, sizes and where they lie.

The counterpart of T5X's model-info.txt.
"""

import math

import jax

from calm_jax import sharding
from calm_jax.array_types import Params
from calm_jax.training.placement import Placement

_HEADER = ('parameter', 'shape', 'dtype', 'size', 'logical axes', 'partition')


def parameter_table(params: Params, placement: Placement) -> str:
  """Returns one line per parameter, notes and the totals, as text.

  Args:
    params: arrays or shapes.
    placement: where they lie.
  """
  rows, notes, total, held = [], [], 0, 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = sharding.path_name(path)
    spec, parts = '-', 1
    if placement.strategy is not None:
      spec, parts = _partition(name, leaf.shape, placement)
      notes += sharding.undivided(
        name, leaf.shape, placement.mesh, placement.strategy
      )
    axes = sharding.logical_axes(name, len(leaf.shape))
    rows.append(
      (
        name,
        ' x '.join(map(str, leaf.shape)) or 'scalar',
        str(leaf.dtype),
        f'{leaf.size:,}',
        ', '.join(axis or '?' for axis in axes),
        spec,
      )
    )
    total += leaf.size
    held += leaf.size // parts
  lines = _aligned([_HEADER, *rows])
  lines += ['', f'{len(rows)} parameter tensors, {total:,} numbers']
  if placement.strategy is not None:
    mesh = ' x '.join(f'{n}={k}' for n, k in placement.mesh.shape.items())
    lines.append(
      f'{placement.strategy} over {mesh}: every device holds {held:,} numbers'
    )
  lines += [f'note: {note}' for note in notes]
  return '\n'.join(lines) + '\n'


def _partition(name, shape, placement) -> tuple[str, int]:
  """Returns the partition as text, and into how many parts it is."""
  spec = sharding.partition_spec(
    name, shape, placement.mesh, placement.strategy
  )
  parts = math.prod(placement.mesh.shape[axis] for axis in spec if axis)
  shown = ', '.join(axis or '-' for axis in spec) or 'replicated'
  return shown, parts


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  ]

"""Loss tables that can stand in one picture: one loss, model and inputs.

Unlike those of `calibration.load_loss_tables` they need not be full.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

from calm_jax import records
from calm_jax.calibration.loaded_tables import measure_of

_TABLE = 'loss_table.npz'
# What all tables of a picture have in common, and why.
_COMMON = {
  'metric': 'losses by two metrics are not of one scale',
  'parameters': 'they are of different models',
  'examples': 'they are of different inputs',
}


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureTable:
  """A loss table, and what to call it.

  Attributes:
    name: the measure in words, or what was given.
    path: where it was.
    table: as it was read.
  """

  name: str
  path: str
  table: records.LossTable


def read(
  folders: Sequence[str], *, names: Sequence[str] | None = None
) -> list[MeasureTable]:
  """Reads the loss tables of calibrations.

  Args:
    folders: where they are, or the files themselves.
    names: what to call them; their measures if None.

  Raises:
    FileNotFoundError: if one is not there.
    ValueError: for tables that cannot stand in one picture, or names that do
      not tell them apart.
  """
  pairs = [_read(folder) for folder in folders]
  _check_comparable(pairs)
  if names is None:
    names = [_in_words(measure_of(table)) for _, table in pairs]
  if len(set(names)) != len(names) or len(names) != len(pairs):
    raise ValueError(
      f'the lines are called {", ".join(names)}; give {len(pairs)} different '
      'names, --names=one,another'
    )
  return [
    MeasureTable(name, path, table)
    for name, (path, table) in zip(names, pairs, strict=True)
  ]


def _read(folder: str) -> tuple[str, records.LossTable]:
  path = folder if folder.endswith('.npz') else os.path.join(folder, _TABLE)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no loss table at {path}; calm_jax.cli.calibrate with '
      '--gin.FULL_GRID=True writes one'
    )
  table = records.read_loss_table(path)
  if not table.computed.any():
    raise ValueError(f'{path} holds no losses yet; let its calibration finish')
  for name in ('num_layers', 'policy'):
    if not table.fingerprint.get(name):
      raise ValueError(
        f'{path} does not say its {name}; give tables of calm_jax.cli.calibrate'
      )
  return path, table


def _check_comparable(read) -> None:
  """Raises ValueError for tables that mean different things by a loss."""
  (first, reference), *others = read
  for path, table in others:
    if table.loss != reference.loss:
      raise ValueError(
        f'{first} has {reference.loss} losses, {path} {table.loss} ones; draw '
        'them one by one'
      )
    for name, why in _COMMON.items():
      here, there = (one.fingerprint.get(name) for one in (reference, table))
      if here != there:
        raise ValueError(
          f'{first} has {name} {here!r}, {path} {there!r}: {why}'
        )


def _in_words(name: str) -> str:
  """Writes the name of a class as words.

  >>> _in_words('SoftmaxMargin')
  'softmax margin'
  """
  return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', ' ', name).lower()

"""Loss tables read back, checked, and taken for whole populations.

What `calibrate` wrote with --gin.FULL_GRID=True; several of one loss, such as
one per confidence measure, can stand side by side.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calm_jax import records
from calm_jax.calibration.population import Population

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTable:
  """A loss table, checked.

  Attributes:
    name: how the comparison calls it, by default its confidence measure.
    path: where it was.
    table: as it was read.
    population: the same, taken for the population.
    speeds: wall clock of its settings, None if they were not timed.
    populations: (loss, metric) -> the population of each of its losses; there
      are several where a calibration promised several.
  """

  name: str
  path: str
  table: records.LossTable
  population: Population
  speeds: records.SettingSpeeds | None = None
  populations: Mapping[tuple[str, str], Population] = dataclasses.field(
    default_factory=dict
  )

  @property
  def about(self) -> dict:
    """What the table says of itself."""
    return self.table.fingerprint


def load_loss_tables(
  paths: Sequence[str],
  *,
  names: Sequence[str] | None = None,
  say: Say = print,
) -> list[LoadedTable]:
  """Reads full loss tables that can stand side by side.

  Args:
    paths: where they are.
    names: what to call them; their confidence measures if None.
    say: gets a line about what is odd.

  Raises:
    FileNotFoundError: if one is not there.
    ValueError: if one is not full, too small or out of its range, if they are
      of different losses, or if there are not as many different names.
  """
  if not paths:
    raise ValueError('there are no tables; give --table=.../loss_table.npz')
  loaded = [_load_table(path, say) for path in paths]
  for entry in loaded[1:]:
    _check_comparable(loaded[0], entry, say)
  if names is None:
    found = [entry.name for entry in loaded]
    names = [
      name if found.count(name) == 1 else f'{name} (table {number})'
      for number, name in enumerate(found, 1)
    ]
  if len(set(names)) != len(loaded) or len(names) != len(loaded):
    raise ValueError(
      f'names are {list(names)}; give {len(loaded)} different ones, one per '
      'table'
    )
  return [
    dataclasses.replace(entry, name=name)
    for entry, name in zip(loaded, names, strict=True)
  ]


def _check_comparable(first: LoadedTable, other: LoadedTable, say: Say) -> None:
  """Raises ValueError for a table that means something else by a loss."""
  for what, here, there in (
    ('loss', first.table.loss, other.table.loss),
    ('metric', first.about.get('metric'), other.about.get('metric')),
    ('loss_range', first.population.loss_range, other.population.loss_range),
    ('losses', list(first.populations), list(other.populations)),
  ):
    if here != there:
      raise ValueError(
        f'{first.path} has {what} {here!r}, {other.path} has {there!r}: one '
        'tolerance means different things there. Validate them one by one'
      )
  if set(first.table.example_ids) != set(other.table.example_ids):
    say(f'{other.path} is of other inputs than {first.path}.')


def _load_table(path: str, say: Say) -> LoadedTable:
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no loss table at {path}; calm_jax.cli.calibrate with '
      '--gin.FULL_GRID=True writes MODEL_DIR/calibration/loss_table.npz'
    )
  table = records.read_loss_table(path)
  speeds = records.find_setting_speeds(path, table.settings, table.fingerprint)
  try:
    of_losses = {
      (one.loss, one.fingerprint.get('metric', '')): _population(one, speeds)
      for one in table.alone()
    }
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  population = next(iter(of_losses.values()))
  if population.num_layers is None:
    say(
      f'{path} does not say how many layers the model has: mean layers are '
      'left out where the full model was chosen. Calibrate again to know.'
    )
  name = measure_of(table) or os.path.splitext(os.path.basename(path))[0]
  return LoadedTable(name, path, table, population, speeds, of_losses)


def _population(
  table: records.LossTable, speeds: records.SettingSpeeds | None
) -> Population:
  """Takes one loss of a table for a population."""
  low, high = table.fingerprint.get('loss_range', (0.0, 1.0))
  return Population(
    losses=table.losses,
    settings=table.settings,
    mean_exit_layers=table.mean_exit_layers,
    num_layers=table.fingerprint.get('num_layers'),
    speed_ups=None if speeds is None else np.asarray(speeds.speed_ups),
    loss_range=(float(low), float(high)),
  )


def measure_of(table: records.LossTable) -> str:
  """Returns the name of the confidence measure, '' if the table has none."""
  described = table.fingerprint
  for key in ('policy', 'exit_rule', 'measure', 'type'):
    described = described.get(key) if isinstance(described, dict) else None
  return described or ''

"""Loss tables made up for tests of validation, with risks that rise."""

import pathlib

import numpy as np

from calm_jax import calibration, records
from calm_jax.cli import validate

NUM_LAYERS = 6
SETTINGS = (0.9, 0.7, 0.5, 0.3, 0.1)


def losses(num_rows=200, seed=0, largest=0.35):
  """Returns losses [N, 5]: inputs differ, and more aggressive is worse."""
  rng = np.random.default_rng(seed)
  shape = (num_rows, len(SETTINGS))
  amount = np.linspace(0.02, largest, len(SETTINGS))
  # Most of what makes an input easy is the same at every setting.
  ease = 0.7 * rng.random((num_rows, 1)) + 0.3 * rng.random(shape)
  return np.where(ease < 2 * amount, rng.random(shape), 0.0)


def loss_table(measure='SoftmaxMargin', **changes):
  """Returns a full table of one measure."""
  values = changes.pop('losses', losses())
  fields = {
    'losses': values,
    'settings': SETTINGS,
    'mean_exit_layers': np.linspace(5.0, 1.5, len(SETTINGS)),
    'example_ids': tuple(f'{n:04x}' for n in range(len(values))),
    'loss': 'textual',
    'fingerprint': {
      'metric': 'rouge_l',
      'task': 'counting',
      'split': 'calibration',
      'num_layers': NUM_LAYERS,
      'loss_range': [0.0, 1.0],
      'policy': {'exit_rule': {'measure': {'type': measure}}},
    },
  }
  return records.LossTable(**{**fields, **changes})


def write_tables(folder, *tables):
  """Writes tables into folders of their own and returns their paths."""
  paths = []
  for number, table in enumerate(tables):
    paths.append(str(folder / f'run_{number}' / 'loss_table.npz'))
    records.write_loss_table(paths[-1], table)
  return paths


def write_speeds(table_path, speed_ups):
  """Writes wall clocks of the settings beside a table."""
  table = records.read_loss_table(table_path)

  def row(name, speed_up):
    return records.TimingRow(
      name=name,
      batch_size=1,
      depth_loop='while',
      milliseconds_per_step=2.0 / speed_up,
      milliseconds_per_batch=20.0 / speed_up,
      speed_up=speed_up,
      ceiling=float('nan'),
      num_batches=8,
      num_repeats=3,
      mean_exit_layer=3.0,
    )

  speeds = records.SettingSpeeds(
    settings=table.settings,
    full=row('full model', 1.0),
    timings=tuple(
      row(f'threshold {setting:g}', speed_up)
      for setting, speed_up in zip(table.settings, speed_ups, strict=True)
    ),
    fingerprint=table.fingerprint,
    context=records.RunContext(device='cpu', dtype='float32'),
  )
  path = pathlib.Path(table_path).with_name(records.SETTING_SPEEDS_NAME)
  records.write_json(path, speeds)


def validation(
  folder, *tables, speed_ups=None, names=None, output_dir=None, **plan
):
  """Runs the job on tables, quickly; `speed_ups` are of the first one."""
  quick = {'num_draws': 40, 'curve_points': 4, 'curve_draws': 20}
  quick |= {'num_splits': 10, 'tolerances': (0.1, 0.25)}
  tables = tables or (
    loss_table(),
    loss_table('StateSimilarity', losses=losses(seed=1, largest=0.5)),
  )
  paths = write_tables(folder, *tables)
  if speed_ups is not None:
    write_speeds(paths[0], speed_ups)
  return validate.run(
    paths,
    calibration.ValidationPlan(**{**quick, **plan}),
    names=names,
    output_dir=output_dir,
  )

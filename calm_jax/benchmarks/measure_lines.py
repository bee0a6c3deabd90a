"""Lines of loss against depth, from the loss tables of one run."""

import os
from collections.abc import Sequence

import numpy as np

from calm_jax import calibration, checkpoints, records
from calm_jax.benchmarks import measure_costs, measure_tables


def of_run(
  run_dir: str,
  folders: Sequence[str],
  *,
  names: Sequence[str] | None = None,
  title: str,
  oracle: str | None = None,
  tolerances: Sequence[float] = (0.05, 0.1),
  error_rate: float = 0.05,
  with_costs: bool = False,
) -> list[records.MeasureLine]:
  """Returns a line per table, and the points of the full model and the oracle.

  Args:
    run_dir: the run directory.
    folders: of calibrations in it; those of the same loss, model and inputs.
    names: what to call the lines; the measures of the tables if None.
    title: what to call the run.
    oracle: in it, a file that `train_gates` wrote as evaluation.json.
    tolerances: at which to say what is certified.
    error_rate: of the certificates.
    with_costs: whether costs are wanted, too.

  Raises:
    FileNotFoundError: if a file is not there.
    ValueError: for tables that cannot stand in one picture, or names that do
      not tell them apart.
  """
  read = measure_tables.read(
    [os.path.join(run_dir, folder) for folder in folders], names=names
  )
  prices = _prices(run_dir, read[0].table) if with_costs else None
  lines = [_line(one, title, tolerances, error_rate, prices) for one in read]
  return [*lines, *_points(lines[0], run_dir, oracle, prices)]


def _line(
  read: measure_tables.MeasureTable,
  title: str,
  tolerances: Sequence[float],
  error_rate: float,
  prices: measure_costs.Prices | None,
) -> records.MeasureLine:
  """Returns the line of one table."""
  table = read.table
  num_layers = table.fingerprint['num_layers']
  kept = np.flatnonzero(table.computed)
  found = np.full(len(table.settings), np.nan)
  try:
    certified = _certified(table, tolerances, error_rate)
    if prices is not None:
      found = measure_costs.costs_of(table, prices, num_layers)
  except ValueError as error:
    raise ValueError(f'{read.path}: {error}') from None
  return records.MeasureLine(
    run=title,
    name=read.name,
    kind='measure',
    loss=table.loss,
    metric=table.fingerprint.get('metric', ''),
    num_layers=num_layers,
    settings=tuple(table.settings[place] for place in kept),
    losses=tuple(table.losses[:, kept].mean(axis=0).tolist()),
    exit_layers=tuple(table.mean_exit_layers[kept].tolist()),
    costs=tuple(found[kept].tolist()) if prices is not None else (),
    certified=tuple(
      records.CertifiedPlace(
        tolerance, None if place is None else int(np.searchsorted(kept, place))
      )
      for tolerance, place in certified
    ),
  )


def _certified(
  table: records.LossTable, tolerances: Sequence[float], error_rate: float
) -> list[tuple[float, int | None]]:
  """Returns the columns certified, of what was decoded far enough to tell."""
  low, high = table.fingerprint.get('loss_range', (0.0, 1.0))
  found = []
  for tolerance in tolerances:
    asked = dict(
      tolerance=tolerance, error_rate=error_rate, loss_range=(low, high)
    )
    if calibration.next_column(table.losses, **asked) is None:
      certificate = calibration.calibrate(table.losses, table.settings, **asked)
      found.append((tolerance, certificate.index))
  return found


def _prices(run_dir: str, table: records.LossTable) -> measure_costs.Prices:
  checkpoint = checkpoints.find_checkpoint(run_dir)
  return measure_costs.Prices.of(
    checkpoints.config_of(checkpoint, checkpoints.read_metadata(checkpoint)),
    max_length=table.fingerprint['max_length'],
    source_length=table.fingerprint['input_length'],
  )


def _points(line, run_dir, oracle, prices) -> list[records.MeasureLine]:
  """Returns the points of the full model and of the oracle."""

  def point(kind, layers, costs=()):
    return records.MeasureLine(
      run=line.run,
      name=kind,
      kind=kind,
      loss=line.loss,
      metric=line.metric,
      num_layers=line.num_layers,
      settings=({},),
      losses=(0.0,),
      exit_layers=(float(layers),),
      costs=costs,
    )

  costs = ()
  if prices is not None:
    costs = (measure_costs.full_cost(prices, line.num_layers),)
  points = [point('full model', line.num_layers, costs)]
  if oracle is not None:
    path = os.path.join(run_dir, oracle)
    evaluation = records.read_record(path, records.GateEvaluation)
    if evaluation.num_layers != line.num_layers:
      raise ValueError(
        f'{path} is of {evaluation.num_layers} layers, the tables of '
        f'{line.num_layers}: give an evaluation of the same model'
      )
    points.append(point('oracle', evaluation.first_agreeing))
  return points

"""What measures certify, at which depth and cost, as a table."""

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


def table(*measured: Measured) -> tables.Table:
  """Returns what is certified of all runs, a measure to a line."""
  lines = [row for one in measured for row in one.rows if row.kind != 'oracle']
  texts = {one.flags['tolerances'] for one in measured}
  tolerances = sorted({float(one) for text in texts for one in text.split(',')})
  return tables.Table(
    header=('model', 'measure', *(f'at {one:g}' for one in tolerances)),
    rows=tuple(
      (line.run, line.name, *(_cell(line, one) for one in tolerances))
      for line in lines
    ),
    notes=(
      f'certified at a mean {lines[0].loss} loss: setting, mean layers that '
      'tokens used, and cost by the ledger in decoder layers where it was '
      'asked for. -: not decoded far enough to tell.',
    ),
  )


def _cell(line: records.MeasureLine, tolerance: float) -> str:
  if line.kind == 'full model':
    return _depth(line, 0)
  for one in line.certified:
    if one.tolerance == tolerance:
      if one.place is None:
        return 'nothing'
      setting = records.setting_in_words(line.settings[one.place])
      return f'{setting.removeprefix("threshold ")}: {_depth(line, one.place)}'
  return '-'


def _depth(line: records.MeasureLine, place: int) -> str:
  depth = f'{line.exit_layers[place]:.2f}'
  return f'{depth}, {line.costs[place]:.2f}' if line.costs else depth

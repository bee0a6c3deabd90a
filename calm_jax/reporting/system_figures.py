"""Draws adaptive systems: quality against what a token costs on the mean."""

from collections.abc import Sequence
from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_MARKS = 'osD^vPX'
# Below so much of the full model's quality nothing is drawn.
_FLOOR = 0.5


def system_figure(rows: Sequence[records.SystemRow]) -> Any:
  """Draws a line per system through its settings, the oracle's dashed.

  One column of axes per data set. Rings are certified. Settings that keep less
  than half of the full model's quality are outside.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib.figure import Figure

  runs = list(dict.fromkeys(row.run for row in rows))
  looks = _looks(rows)
  with styling.style():
    drawn = Figure(figsize=(4.6 * len(runs) + 2.4, 4.4), layout='constrained')
    grid = drawn.subplots(1, len(runs), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, run in zip(grid, runs, strict=True):
      own = [row for row in rows if row.run == run]
      _draw(axes, own, looks, handles)
      axes.set_title(run, fontsize=9.5)
      axes.set_xlabel('arithmetic per token, % of the full decode')
    grid[0].set_ylabel('quality against the references')
    styling.legend_beside(drawn, handles)
  return drawn


def _draw(axes, rows, looks, handles) -> None:
  """Draws the systems on one data set."""
  full = [row for row in rows if row.system == records.FULL_SYSTEM]
  for row in full:
    handle = axes.axhline(
      row.quality, color=palette.FULL, linestyle=':', linewidth=1.2
    )
    handles.setdefault(records.FULL_SYSTEM, handle)
  for name, (colour, mark, line) in looks.items():
    own = [row for row in rows if _name(row, rows) == name]
    if not own:
      continue
    own.sort(key=lambda row: row.flops)
    (handle,) = axes.plot(
      [100 * row.flops for row in own],
      [row.quality for row in own],
      color=colour,
      linestyle=line,
      marker=mark,
      markersize=4,
      linewidth=1.3,
      zorder=3,
    )
    handles.setdefault(name, handle)
  certified = [row for row in rows if row.outcomes]
  if certified:
    rings = axes.scatter(
      [100 * row.flops for row in certified],
      [row.quality for row in certified],
      s=90,
      facecolors='none',
      edgecolors=palette.FULL,
      linewidths=1.4,
      zorder=4,
    )
    handles.setdefault('certified', rings)
  if full:
    floor = _FLOOR * max(row.quality for row in full)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, floor), high)
  axes.set_xlim(left=0)


def _name(row: records.SystemRow, rows: Sequence[records.SystemRow]) -> str:
  """Returns what a line is called, with its model where there are several."""
  models = {one.model for one in rows if one.system == row.system}
  return row.system if len(models) == 1 else f'{row.system}, {row.model}'


def _looks(
  rows: Sequence[records.SystemRow],
) -> dict[str, tuple[str, str, str]]:
  """Returns colour, mark and line of every name, no two alike for long."""
  found = {}
  for run in dict.fromkeys(row.run for row in rows):
    own = [row for row in rows if row.run == run]
    for row in own:
      name = _name(row, own)
      if row.system == records.ORACLE_SYSTEM:
        found.setdefault(name, (palette.ORACLE, '', '--'))
      elif row.system != records.FULL_SYSTEM and name not in found:
        place = len(found)
        colours = palette.LINES
        line = '-' if place < len(colours) else '-.'
        found[name] = (
          colours[place % len(colours)],
          _MARKS[place % len(_MARKS)],
          line,
        )
  return found

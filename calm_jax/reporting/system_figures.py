"""Draws adaptive systems: quality against what a token costs on the mean."""

from collections.abc import Sequence
from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_MARKS = 'osD^vPX'
# Below so much of the full model's quality nothing is drawn.
_FLOOR = 0.5
# Axes beside each other.
_ACROSS = 2
_RINGS = 'certified'


def system_figure(rows: Sequence[records.SystemRow]) -> Any:
  """Draws a line per system through its settings, the oracle's dashed.

  Axes of their own for each model of each data set; a system looks the same on
  all of them. Rings are certified. Settings that keep less than half of the
  full model's quality are outside.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib.figure import Figure

  models = list(dict.fromkeys((row.run, row.model) for row in rows))
  across = min(_ACROSS, len(models))
  down = -(-len(models) // across)
  looks = _looks(rows)
  with styling.style():
    drawn = Figure(
      figsize=(4.4 * across + 2.4, 3.9 * down), layout='constrained'
    )
    handles: dict[str, Any] = {}
    for place, (run, model) in enumerate(models):
      axes = drawn.add_subplot(down, across, place + 1)
      own = [row for row in rows if (row.run, row.model) == (run, model)]
      _draw(axes, own, looks, handles)
      axes.set_title(run if model == '-' else f'{run}, {model}', fontsize=9.5)
      axes.set_xlabel('arithmetic per token, % of the full decode')
      if place % across == 0:
        axes.set_ylabel('quality against the references')
    styling.legend_beside(
      drawn,
      {name: handles[name] for name in (*looks, _RINGS) if name in handles},
    )
  return drawn


def _draw(axes, rows, looks, handles) -> None:
  """Draws the systems of one model."""
  full = [row for row in rows if row.system == records.FULL_SYSTEM]
  for name, look in looks.items():
    own = sorted(
      (row for row in rows if row.system == name), key=lambda row: row.flops
    )
    if not own:
      continue
    if name == records.FULL_SYSTEM:
      handle = axes.axhline(own[0].quality, **look)
    else:
      (handle,) = axes.plot(
        [100 * row.flops for row in own],
        [row.quality for row in own],
        markersize=4,
        zorder=3,
        **look,
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
    handles.setdefault(_RINGS, rings)
  if full:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _FLOOR * full[0].quality), high)
  axes.set_xlim(left=0)


def _looks(rows: Sequence[records.SystemRow]) -> dict[str, dict[str, Any]]:
  """Returns how the line of every system looks, no two alike for long."""
  found: dict[str, dict[str, Any]] = {
    records.FULL_SYSTEM: dict(color=palette.FULL, linestyle=':', linewidth=1.2)
  }
  names = dict.fromkeys(row.system for row in rows)
  names.pop(records.FULL_SYSTEM, None)
  names.pop(records.ORACLE_SYSTEM, None)
  colours = palette.LINES
  for place, name in enumerate(names):
    found[name] = dict(
      color=colours[place % len(colours)],
      marker=_MARKS[place % len(_MARKS)],
      linestyle='-' if place < len(colours) else '-.',
      linewidth=1.3,
    )
  found[records.ORACLE_SYSTEM] = dict(
    color=palette.ORACLE, linestyle='--', linewidth=1.3
  )
  return found

"""Draws exits of an encoder's classifier: what is lost at which depth."""

import statistics
from collections.abc import Sequence
from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_MARKS = 'osD^vPX'
# In points of 100: further up there is nothing that anybody would promise.
_MOST_APART = 12.0

Points = dict[str, list[tuple[float, float, float]]]


def encoder_exit_figure(rows: Sequence[records.EncoderExitRow]) -> Any:
  """Draws accuracy, and disagreement with the last layer, against mean layers.

  A column of axes per run, a line per rule through its settings, the means over
  seeds; thin lines are single seeds. Stars are certified, by the rule of that
  colour (a seed that certifies nothing runs all layers), dotted lines what they
  promise. What a job certified has no line, and so no star.

  Args:
    rows: of one run or several, and of one seed or several each: the n-th row
      of one rule, setting and run is of the n-th seed.

  Returns:
    A matplotlib Figure.

  Raises:
    ValueError: without any rule at any setting.
  """
  from matplotlib.figure import Figure

  runs = list(dict.fromkeys(row.run for row in rows))
  rules = list(
    dict.fromkeys(
      row.rule for row in rows if not row.certified and not row.full
    )
  )
  if not rules:
    raise ValueError('no row is a rule at a setting: there is nothing to draw')
  with styling.style():
    drawn = Figure(figsize=(4.4 * len(runs) + 2.2, 6.4), layout='constrained')
    grid = drawn.subplots(2, len(runs), squeeze=False)
    handles: dict[str, Any] = {}
    for place, run in enumerate(runs):
      own = [row for row in rows if row.run == run]
      upper, lower = grid[0][place], grid[1][place]
      _draw(upper, own, rules, handles, lambda row: 100 * row.accuracy)
      _draw(lower, own, rules, handles, lambda row: 100 * (1 - row.agreement))
      for promised in sorted({_promised(row) for row in own} - {None}):
        lower.axhline(
          promised, color=palette.STATIC, linestyle=':', linewidth=1.0
        )
      lower.set_ylim(-0.3, _MOST_APART)
      upper.set_title(run, fontsize=9.5)
      lower.set_xlabel('encoder layers of an input')
    grid[0][0].set_ylabel('accuracy %')
    grid[1][0].set_ylabel('other classes than the last layer says, %')
    styling.legend_beside(drawn, handles)
  return drawn


def _draw(axes, rows, rules, handles, height) -> None:
  """Draws all rules of a run."""
  for full in _together(row for row in rows if row.full).values():
    (handle,) = axes.plot(
      [full[0].mean_layers],
      [statistics.fmean(height(one) for one in full)],
      linestyle='none',
      marker='s',
      markersize=7,
      color=palette.FULL,
    )
    handles.setdefault(records.FULL_ENCODER, handle)
  for place, rule in enumerate(rules):
    # Darker lines first; past the last colour they begin anew, dashed.
    colour = palette.LINES[place % len(palette.LINES)]
    line = '-' if place < len(palette.LINES) else '--'
    curves = _curves([row for row in rows if row.rule == rule], height)
    for curve in curves[1:] if len(curves) > 2 else ():
      axes.plot(*curve, color=colour, linewidth=0.5, alpha=0.4)
    for curve in curves[:1]:
      (handle,) = axes.plot(
        *curve,
        color=colour,
        linestyle=line,
        marker=_MARKS[place % len(_MARKS)],
        markersize=3.5,
        linewidth=1.4,
      )
      handles.setdefault(rule, handle)
    certified = [row for row in rows if row.method == rule]
    for rows_of_one in _together(certified).values():
      if all(row.setting == records.NOTHING for row in rows_of_one):
        continue
      axes.scatter(
        [statistics.fmean(row.mean_layers for row in rows_of_one)],
        [statistics.fmean(height(row) for row in rows_of_one)],
        marker='*',
        s=150,
        color=colour,
        edgecolors='white',
        linewidths=0.8,
        zorder=4,
      )
      if 'certified' not in handles:
        handles['certified'] = _star(axes)
  axes.set_xlim(left=0)


def _star(axes) -> Any:
  """Returns what stands for the stars of all colours in the legend."""
  return axes.scatter([], [], marker='*', s=150, color=palette.STATIC)


def _together(rows) -> dict[tuple[str, str, str], list]:
  """Returns rows that differ by their seed alone, together."""
  found: dict = {}
  for row in rows:
    found.setdefault(row.key, []).append(row)
  return found


def _curves(rows, height) -> list[tuple[list[float], list[float]]]:
  """Returns the mean curve of a rule, then that of each seed."""
  groups = list(_together(rows).values())
  if not groups:
    return []
  seeds = min(map(len, groups))
  layers = [[row.mean_layers for row in group[:seeds]] for group in groups]
  heights = [[height(row) for row in group[:seeds]] for group in groups]
  means = [[*map(statistics.fmean, values)] for values in (layers, heights)]
  singles = [
    ([x[seed] for x in layers], [y[seed] for y in heights])
    for seed in range(seeds)
  ]
  return [(means[0], means[1]), *singles]


def _promised(row: records.EncoderExitRow) -> float | None:
  """Returns the disagreement that a row promises, in points; None for none."""
  words = row.rule.removeprefix(records.CERTIFIED).split(' ')
  if not row.certified or len(words) != 2 or words[0] != 'textual':
    return None
  return 100 * float(words[1])

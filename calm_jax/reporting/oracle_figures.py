"""Draws oracles over routes: scores against the budget of mean layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.reporting import palette, styling

# Attribute -> name, colour, line, mark.
_LINES = {
  'oracle': ('oracle, by its own scores', palette.ORACLE, '--', 'o'),
  'held_out': ('oracle, by the other half', palette.ORACLE, '-', 'o'),
  'mix': ('best blind mix', '#8a5fb0', '-', 'D'),
  'single': ('best single route', palette.FULL, '-', 's'),
  'uniform': ('evenly', '#2c78a3', '-', '^'),
  'early_exit': ('first layers', palette.EARLY, '-', 'v'),
}


def oracle_figure(rows: Sequence[records.OracleRow]) -> Any:
  """Draws who does best with how many layers.

  One row of axes per run and score, one column for greedy and one for sampled
  outputs.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib.figure import Figure

  scores = list(dict.fromkeys((row.run, row.score) for row in rows))
  kinds = list(dict.fromkeys(row.decoding for row in rows))
  with styling.style():
    drawn = Figure(
      figsize=(4.2 * len(kinds), 3.0 * len(scores) + 0.9), layout='constrained'
    )
    grid = drawn.subplots(len(scores), len(kinds), squeeze=False)
    handles: dict[str, Any] = {}
    for axes_of_score, (run, score) in zip(grid, scores, strict=True):
      for axes, kind in zip(axes_of_score, kinds, strict=True):
        own = [
          row
          for row in rows
          if (row.run, row.score, row.decoding) == (run, score, kind)
        ]
        if own:
          _draw(axes, own, handles)
        axes.set_title(f'{kind} outputs', fontsize=9.5)
      axes_of_score[0].set_ylabel(f'{run}\nmean {score}')
    for axes in grid[-1]:
      axes.set_xlabel('mean decoder layers')
    drawn.legend(
      list(handles.values()),
      list(handles),
      loc='outside upper center',
      ncols=3,
      fontsize=8.5,
    )
  return drawn


def _draw(
  axes: Any, rows: Sequence[records.OracleRow], handles: dict[str, Any]
) -> None:
  """Draws one score of one kind of outputs."""
  budgets = [row.budget for row in rows]
  low, middle, high = np.array([row.random for row in rows]).T
  band = axes.fill_between(
    budgets, low, high, color=palette.BASELINE, alpha=0.35, linewidth=0
  )
  (median,) = axes.plot(budgets, middle, color=palette.STATIC, linestyle=':')
  handles.setdefault('random, 5 to 95 %', band)
  handles.setdefault('random, the median', median)
  for name, (label, colour, line, mark) in _LINES.items():
    values = np.array([getattr(row, name) for row in rows])
    if np.isnan(values).all():
      continue
    (handle,) = axes.plot(
      budgets,
      values,
      color=colour,
      linestyle=line,
      marker=mark,
      markersize=4,
      zorder=3,
    )
    handles.setdefault(label, handle)
  full = axes.axhline(
    rows[0].full, color=palette.FULL, linestyle=':', linewidth=1.2
  )
  handles.setdefault('full model', full)
  if len(budgets) < 13:
    axes.set_xticks(budgets)

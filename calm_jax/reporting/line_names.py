"""Writes the names of falling lines beside them, where there is room."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax import records


def name_lines(
  axes: Any,
  looks: Sequence[tuple[records.MeasureLine, str, str]],
  field: str,
  top: float,
) -> None:
  """Names lines of losses against one of their fields, each in its colour.

  The line that is furthest right is named lowest.

  Args:
    axes: with the limits that they are shown with.
    looks: lines with a colour and a marker each.
    field: 'exit_layers' or 'costs'.
    top: the largest loss that is shown.
  """
  looks = sorted(
    looks, key=lambda look: _at(look[0], field, 0.25 * top), reverse=True
  )
  heights = np.linspace(0.3, 0.92, max(len(looks), 2)) * top
  # Those of short lines are no higher than they are.
  pairs = [
    (min(float(height), max(look[0].losses)), look)
    for height, look in zip(heights, looks, strict=False)
  ]
  lowest = 0.0
  for height, (line, colour, _) in sorted(pairs, key=lambda pair: pair[0]):
    written = max(height, lowest)
    lowest = written + 0.06 * top
    there = [
      _at(one, field, height) for one, *_ in looks if max(one.losses) >= height
    ]
    _name(
      axes, line, colour, (_at(line, field, height), height), there, written
    )


def _name(axes, line, colour, point, there, written) -> None:
  """Names one line, left or right of all lines that are there."""
  left, right = axes.get_xlim()
  rightwards = right - max(there) >= min(there) - left
  space = 0.04 * (right - left)
  end = max(there) + space if rightwards else min(there) - space
  x, y = point
  axes.plot([x, end], [y, written], color=colour, linewidth=0.7)
  axes.annotate(
    line.name.replace('$', r'\$'),
    (end, written),
    xytext=(3 if rightwards else -3, 0),
    textcoords='offset points',
    ha='left' if rightwards else 'right',
    va='center',
    fontsize=8.5,
    color=colour,
    bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.8},
    zorder=6,
  )


def _at(line: records.MeasureLine, field: str, height: float) -> float:
  """Returns where a line first has a loss, its last place if never."""
  found = getattr(line, field)
  place = int(np.argmax(np.array(line.losses) >= height))
  if not place:
    return found[0] if line.losses[0] >= height else found[-1]
  ends = slice(place - 1, place + 1)
  return float(np.interp(height, line.losses[ends], found[ends]))

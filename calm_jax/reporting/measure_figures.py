"""Draws confidence measures: what each loses at which depth and cost."""

from collections.abc import Sequence
from typing import Any

from calm_jax import records
from calm_jax.reporting import line_names, palette, styling

_MARKERS = 'osD^vP'
# Further up there is nothing that anybody would promise.
_TOLERANCES_SHOWN = 2.4


def measures_figure(lines: Sequence[records.MeasureLine]) -> Any:
  """Draws the mean loss against the layers of a token, a line per measure.

  A second pair of axes has the cost of a token where all measures have one. A
  star is what is certified at the tolerance above it.

  Args:
    lines: of one run; its full model and its oracle among them, or not.

  Returns:
    A matplotlib Figure.

  Raises:
    ValueError: if there is no measure among the lines.
  """
  from matplotlib.figure import Figure

  measures = [line for line in lines if line.kind == 'measure']
  if not measures:
    raise ValueError('no line is a measure: there is nothing to draw.')
  costed = all(line.costs for line in measures)
  first, top = measures[0], _top(measures)
  names = ('exit_layers', 'costs')[: 1 + costed]
  with styling.style():
    figure = Figure(figsize=(4.4 * len(names), 4.0), layout='constrained')
    rows = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(rows, names, strict=True):
      _draw(axes, lines, measures, name)
      line_names.name_lines(axes, _looks(measures), name, top)
    rows[0].set_ylim(-0.03 * top, top)
    rows[0].set_ylabel(f'{_plain(first.run)}: mean {_plain(first.loss)} loss')
    rows[0].set_xlabel(f'layers that a token used (of {first.num_layers})')
    if costed:
      rows[1].set_xlabel('arithmetic of a token by the ledger, in layers')
    figure.legend(
      *rows[0].get_legend_handles_labels(),
      loc='outside upper center',
      ncols=4,
      fontsize=8.5,
    )
  return figure


def _top(measures: Sequence[records.MeasureLine]) -> float:
  """Returns the largest loss that is shown."""
  largest = max(max(line.losses) for line in measures)
  tolerances = [one.tolerance for line in measures for one in line.certified]
  if tolerances:
    largest = min(largest, _TOLERANCES_SHOWN * max(tolerances))
  return max(1.05 * largest, 1e-3)


def _draw(axes, lines, measures, name: str) -> None:
  """Draws all lines and points against one field of them."""
  tolerances = {one.tolerance for line in measures for one in line.certified}
  for tolerance in sorted(tolerances):
    axes.axhline(
      tolerance, color=palette.STATIC, linestyle='--', linewidth=1.0, zorder=1
    )
  for line, colour, marker in _looks(measures):
    found = getattr(line, name)
    axes.plot(
      found,
      line.losses,
      color=colour,
      marker=marker,
      markersize=4,
      linewidth=1.5,
      zorder=3,
    )
    places = [one.place for one in line.certified if one.place is not None]
    axes.plot(
      [found[place] for place in places],
      [line.losses[place] for place in places],
      linestyle='none',
      marker='*',
      markersize=14,
      color=colour,
      markeredgecolor='white',
      markeredgewidth=0.8,
      zorder=4,
    )
  _draw_points(axes, lines, name)
  _note(axes, sorted(tolerances))
  end = max(max(getattr(line, name), default=0.0) for line in lines)
  axes.set_xlim(0, 1.04 * end)


def _draw_points(axes, lines, name: str) -> None:
  """Marks the full model and the oracle."""
  for kind, marker, colour in (
    ('full model', 's', palette.FULL),
    ('oracle', 'D', palette.ORACLE),
  ):
    points = [
      x for line in lines if line.kind == kind for x in getattr(line, name)
    ]
    if points:
      axes.plot(
        points,
        [0.0] * len(points),
        linestyle='none',
        marker=marker,
        markersize=8,
        color=colour,
        markeredgecolor='white',
        markeredgewidth=0.8,
        clip_on=False,
        zorder=5,
        label=kind,
      )


def _note(axes, tolerances: Sequence[float]) -> None:
  """Puts the stars of all colours, and the levels, into the legend."""
  if not tolerances:
    return
  axes.plot(
    [],
    [],
    linestyle='none',
    marker='*',
    markersize=12,
    color=palette.STATIC,
    label='certified',
  )
  levels = ' and '.join(f'{one:g}' for one in tolerances)
  axes.plot(
    [], [], color=palette.STATIC, linestyle='--', label=f'at most {levels}'
  )


def _looks(measures):
  """Returns measures with a colour and a marker each."""
  number = len(palette.LINES)
  return [
    (line, palette.LINES[place % number], _MARKERS[place % len(_MARKERS)])
    for place, line in enumerate(measures)
  ]


def _plain(text: str) -> str:
  """Keeps matplotlib from reading dollars in a name as mathematics."""
  return text.replace('$', r'\$')

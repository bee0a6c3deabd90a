"""Draws the arena: what each way of decoding loses, and what it is worth."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_MARKERS = 'osD^vPX*'
_OTHER = 'other program'
# Of those.
_STROKES = '|x+1_'
# At which a policy was certified; not the batch size of a tuning.
_SETTING = re.compile(r' at (?!batch )[^,]*(, \w+ [\d.]+)*$')
_COLOURS = (
  palette.EARLY,
  '#2c78a3',
  '#3d9a6b',
  palette.ORACLE,
  '#8a5fb0',
  palette.STATIC,
)


def arena_figure(rows: Sequence[records.ArenaRow]) -> Any:
  """Draws how far outputs are from the full model's against the speed-up.

  One row of axes per run, one column per batch size; a run that was not timed
  at one leaves its place empty. Hollow marks broke their
  promise on these inputs, strokes are other programs.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib.figure import Figure

  names = list(dict.fromkeys(row.run for row in rows))
  sizes = sorted({clock.batch_size for row in rows for clock in row.clocks})
  looks = {}
  for marks, others in ((_MARKERS, False), (_STROKES, True)):
    families = dict.fromkeys(
      _family(row) for row in rows if (row.kind == _OTHER) == others
    )
    looks |= dict(zip(families, _looks(marks), strict=False))
  with styling.style():
    drawn = Figure(
      figsize=(4.2 * len(sizes), 3.0 * len(names) + 0.9), layout='constrained'
    )
    grid = drawn.subplots(len(names), len(sizes), squeeze=False)
    handles, lowest, first = {}, {}, {}
    for axes_of_run, name in zip(grid, names, strict=True):
      for axes, size in zip(axes_of_run, sizes, strict=True):
        own = [row for row in rows if row.run == name and _at(row, size)]
        if not own:
          axes.set_axis_off()
          continue
        _draw(axes, own, size, looks, handles)
        first.setdefault(name, axes)
        lowest[size] = axes
    for name, axes in first.items():
      axes.set_ylabel(f'{name}\nmean loss against the full model')
    for axes in lowest.values():
      axes.set_xlabel('speed-up over our full decode')
    drawn.legend(
      list(handles.values()),
      list(handles),
      loc='outside upper center',
      ncols=3,
      fontsize=8.5,
    )
  return drawn


def _draw(axes, rows, size, looks, handles) -> None:
  """Draws one run at one batch size."""
  for row in rows:
    clock = _at(row, size)
    family = _family(row)
    marker, colour = looks[family]
    (handle,) = axes.plot(
      [clock.speed_up],
      [row.distance],
      linestyle='none',
      marker=marker,
      markersize=9 if row.kind == _OTHER else 6.5,
      markeredgewidth=1.6,
      color=colour,
      markerfacecolor='white' if row.kept is False else colour,
      zorder=3,
    )
    handles.setdefault(family, handle)
  axes.axvline(1.0, color=palette.FULL, linestyle=':', linewidth=1.4)
  axes.set_title(f'batch {size}', fontsize=9.5)
  axes.set_xlim(left=0)
  axes.margins(0.08)


def _at(row: records.ArenaRow, size: int) -> records.ArenaClock | None:
  """Returns the clock of a row at a batch size, None without one."""
  return {clock.batch_size: clock for clock in row.clocks}.get(size)


def _family(row: records.ArenaRow) -> str:
  """Returns what the picture calls a row: tolerances share a mark."""
  name = row.name
  for one in row.outcomes:
    name = name.replace(f', {one.loss} {one.tolerance:g}', '')
  head, _, _ = name.partition(', threshold')
  return _SETTING.sub('', head)


def _looks(marks: str) -> Iterator[tuple[str, str]]:
  """Yields marks and colours, no two alike for long."""
  for place in range(len(marks) * len(_COLOURS)):
    yield marks[place % len(marks)], _COLOURS[place % len(_COLOURS)]

"""Draws serving: tokens per second and inner-token latency by batch size."""

from collections.abc import Sequence
from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_MARKERS = 'osD^vP'


def serving_figure(rows: Sequence[records.ServingRow]) -> Any:
  """Draws a line per way of serving against the number of slots.

  One row of axes per run: tokens per second, and milliseconds between tokens,
  the mean as a line and the 99th percentile as a dash above it.

  Args:
    rows: of one run or several.

  Returns:
    A matplotlib Figure.

  Raises:
    ValueError: if there are no rows.
  """
  from matplotlib.figure import Figure

  if not rows:
    raise ValueError('there are no rows: there is nothing to draw.')
  run_names = list(dict.fromkeys(row.run for row in rows))
  with styling.style():
    figure = Figure(
      figsize=(8.8, 3.2 * len(run_names) + 0.8), layout='constrained'
    )
    grid = figure.subplots(len(run_names), 2, squeeze=False)
    for pair, run in zip(grid, run_names, strict=True):
      _draw(pair, [row for row in rows if row.run == run])
      pair[0].set_ylabel(f'{_plain(run)}\ntokens per second')
      pair[1].set_ylabel('ms between tokens (dash: 99 %)')
    for axes in grid[-1]:
      axes.set_xlabel('slots, requests decoded together')
    figure.legend(
      *grid[0][0].get_legend_handles_labels(),
      loc='outside upper center',
      ncols=3,
      fontsize=8.5,
    )
  return figure


def _draw(pair, rows: Sequence[records.ServingRow]) -> None:
  """Draws the lines of one run."""
  for place, way in enumerate(dict.fromkeys(row.way for row in rows)):
    own = sorted(
      (row for row in rows if row.way == way), key=lambda row: row.batch_size
    )
    sizes = [row.batch_size for row in own]
    colour = palette.LINES[place % len(palette.LINES)]
    look: dict[str, Any] = dict(
      color=colour, marker=_MARKERS[place % len(_MARKERS)], markersize=4
    )
    pair[0].plot(
      sizes, [row.tokens_per_second for row in own], label=_plain(way), **look
    )
    pair[1].plot(sizes, [row.wait_mean for row in own], **look)
    pair[1].plot(
      sizes,
      [row.wait_99 for row in own],
      color=colour,
      linestyle='none',
      marker='_',
      markersize=9,
    )
  ticks = sorted({row.batch_size for row in rows})
  for axes in pair:
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)


def _plain(text: str) -> str:
  """Keeps matplotlib from reading dollars in a name as mathematics."""
  return text.replace('$', r'\$')

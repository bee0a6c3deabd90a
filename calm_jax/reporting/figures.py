"""Draws quality against depth, and where tokens left.

Figures are built on matplotlib's objects without pyplot, so that nothing
depends on a display or on global state. They come as PNG, as an SVG file, or as
SVG text for a page. matplotlib is loaded when the first figure is drawn.
"""

import dataclasses
import io
import math
import os
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.reporting import palette, styling, tables

_MARKERS = {
  'full': {'marker': 's', 'color': palette.FULL, 'markersize': 8},
  'certified': {'marker': '*', 'color': palette.EARLY, 'markersize': 16},
  'early_exit': {'marker': 'o', 'color': palette.EARLY, 'markersize': 5},
  'static': {'marker': 'o', 'color': palette.STATIC, 'markersize': 5.5},
  'oracle': {'marker': 'D', 'color': palette.ORACLE, 'markersize': 7.5},
}
_LABELS = {
  'full': 'full model',
  'certified': 'early exit, certified',
  'early_exit': 'early exit, other thresholds',
  'static': 'every token at one layer',
  'oracle': 'oracle',
}


def quality_figure(result: records.EvaluationResult) -> Any:
  """Draws quality against the mean exit layer, one mark per decode.

  Static exits and early exits are lines through their points; a baseline that
  uses no layers is a dotted level. Where no token of the early exit leaves, but
  sources leave the encoder, depth is the encoder's.

  Args:
    result: an evaluation whose rows have the primary metric.

  Returns:
    A matplotlib Figure.

  Raises:
    ValueError: if no row has the primary metric.
  """
  metric = result.primary_metric
  rows = [row for row in (*result.rows, *result.sweep) if metric in row.quality]
  if not rows:
    raise ValueError(
      f'no row has the metric {metric!r}; set primary_metric to one of '
      f'{sorted({name for row in result.rows for name in row.quality})}.'
    )
  rows, num_layers, depth = _by_depth(rows, result)
  figure, axes = styling.new_axes()
  with styling.style():
    _draw_line(axes, rows, metric, kinds=('static', 'full'), colour='#b6bbc4')
    # Early exit at threshold 1 is the full model: its line ends there too.
    _draw_line(
      axes,
      rows,
      metric,
      kinds=('early_exit', 'certified', 'full'),
      colour='#e9a3ac',
    )
    _draw_marks(axes, rows, metric)
    for row in rows:
      if row.kind == 'baseline':
        axes.axhline(
          row.quality[metric],
          color=palette.BASELINE,
          linestyle=':',
          linewidth=1.6,
          label=_plain(row.name),
        )
    axes.set_xlim(0.6, num_layers + 0.4)
    axes.set_xticks(_layer_ticks(num_layers))
    axes.margins(y=0.08)
    axes.set_xlabel(f'{depth}, mean (of {num_layers})')
    axes.set_ylabel(f'{tables.metric_name(metric)}, % (against references)')
    axes.legend(loc='best', fontsize=8.5, handletextpad=0.5)
  return figure


def _by_depth(
  rows: list[records.PolicyRow], result: records.EvaluationResult
) -> tuple[list[records.PolicyRow], int, str]:
  """Returns rows by the depth that they differ in, its most, and its name."""
  early = tables.early_exit_row(result)
  number = result.num_encoder_layers
  if (
    early is None
    or number is None
    or math.isnan(early.mean_encoder_layer)
    or early.mean_exit_layer < result.num_layers
  ):
    return rows, result.num_layers, 'decoder layers per token'
  moved = [
    dataclasses.replace(
      row,
      mean_exit_layer=number
      if math.isnan(row.mean_encoder_layer)
      else row.mean_encoder_layer,
    )
    for row in rows
  ]
  return moved, number, 'encoder layers per input'


def exit_layer_figure(result: records.EvaluationResult) -> Any:
  """Draws which share of the tokens left after each layer.

  Bars of the early exit have the colours that its tokens have on the page; the
  oracle stands beside it as outlines.

  Raises:
    ValueError: if there is no early exit among the rows.
  """
  early = tables.early_exit_row(result)
  if early is None:
    raise ValueError('no row is an early exit: there is no histogram to draw.')
  oracle = next((row for row in result.rows if row.kind == 'oracle'), None)
  num_layers = result.num_layers
  layers = np.arange(1, num_layers + 1)
  width = 0.7 if oracle is None else 0.4
  figure, axes = styling.new_axes()
  with styling.style():
    bars = axes.bar(
      layers if oracle is None else layers - width / 2,
      _share(early),
      width=width,
      color=[palette.depth_colour(int(n), num_layers) for n in layers],
      edgecolor=palette.FULL,
      linewidth=0.8,
    )
    axes.bar_label(bars, fmt='%.0f', fontsize=8, padding=2)
    handles = [_patch(early, palette.FULL, fill=bars[num_layers // 2])]
    if oracle is not None:
      axes.bar(
        layers + width / 2,
        _share(oracle),
        width=width,
        facecolor='white',
        edgecolor=palette.ORACLE,
        linewidth=1.4,
      )
      handles.append(_patch(oracle, palette.ORACLE))
    axes.grid(axis='x', visible=False)
    axes.set_xticks(_layer_ticks(num_layers))
    axes.set_xlabel('layer after which the token left')
    axes.set_ylabel('share of tokens, %')
    axes.margins(y=0.12)
    # Above the axes: any bar may be the tall one.
    axes.legend(
      handles=handles,
      loc='lower left',
      bbox_to_anchor=(0.0, 1.0),
      ncols=2,
      fontsize=8.5,
    )
  return figure


def save_figure(
  figure: Any, path: str | os.PathLike, *, dpi: int = 160
) -> None:
  """Writes a figure as the format that the path ends in (.svg, .png, .pdf).

  Args:
    figure: a matplotlib Figure.
    path: where to; folders are made.
    dpi: pixels per inch, where the format has pixels.
  """
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with styling.style():
    figure.savefig(path, dpi=dpi, facecolor='white')


def as_svg(figure: Any) -> str:
  """Returns a figure as an <svg> element to be put into a page."""
  import matplotlib

  buffer = io.StringIO()
  # Metadata would name the day, and so make equal figures differ.
  blank = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  with styling.style(), matplotlib.rc_context({'svg.hashsalt': 'calm_jax'}):
    figure.savefig(buffer, format='svg', metadata=blank, facecolor='white')
  text = buffer.getvalue()
  return text[text.index('<svg') :]


def _patch(row: records.PolicyRow, edge: str, *, fill: Any = None) -> Any:
  """Returns a legend's patch for a row; `fill` is a bar of the same colour."""
  from matplotlib import patches

  return patches.Patch(
    facecolor='white' if fill is None else fill.get_facecolor(),
    edgecolor=edge,
    label=f'{_plain(row.name)} (mean {row.mean_exit_layer:.2f})',
  )


def _plain(text: str) -> str:
  """Keeps matplotlib from reading dollars in a name as mathematics."""
  return text.replace('$', r'\$')


def _draw_marks(axes, rows, metric: str) -> None:
  """Marks every decode, one kind after the other."""
  for kind, marker in _MARKERS.items():
    points = _points(rows, metric, (kind,))
    if len(points):
      axes.plot(
        points[:, 0],
        points[:, 1],
        linestyle='none',
        label=_LABELS[kind],
        markeredgecolor='white',
        markeredgewidth=0.8,
        zorder=4 if kind in ('certified', 'oracle') else 3,
        **marker,
      )


def _points(rows, metric: str, kinds: tuple[str, ...]) -> np.ndarray:
  """Returns (mean exit layer, quality) of some kinds [n, 2], by depth."""
  points = [
    (row.mean_exit_layer, row.quality[metric])
    for row in rows
    if row.kind in kinds
  ]
  return np.array(sorted(points), dtype=np.float64).reshape(-1, 2)


def _draw_line(axes, rows, metric: str, *, kinds, colour: str) -> None:
  """Joins the points of some kinds, in order of depth."""
  if not any(row.kind == kinds[0] for row in rows):
    return
  points = _points(rows, metric, kinds)
  axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.4, zorder=2)


def _layer_ticks(num_layers: int) -> list[int]:
  """Returns the layers to label: all, or every few of a deep model."""
  step = -(-num_layers // 12)
  return [
    layer
    for layer in range(1, num_layers + 1)
    if step == 1 or layer == 1 or layer % step == 0
  ]


def _share(row: records.PolicyRow) -> np.ndarray:
  """Returns the histogram in percent [L]."""
  counts = np.array(row.exit_layer_histogram, dtype=np.float64)
  return 100 * counts / max(counts.sum(), 1)

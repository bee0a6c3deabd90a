"""The style of all figures, and an empty figure in it."""

from collections.abc import Mapping
from typing import Any

_STYLE = {
  'font.family': 'DejaVu Sans',
  'font.size': 9.5,
  'axes.edgecolor': '#8a9099',
  'axes.labelcolor': '#1b1f27',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#e6e8ec',
  'xtick.color': '#4a505a',
  'ytick.color': '#4a505a',
  'legend.frameon': False,
  # Text as outlines: the page looks the same without the fonts.
  'svg.fonttype': 'path',
}


def style() -> Any:
  """Returns a context with the style of all figures."""
  import matplotlib

  return matplotlib.rc_context(_STYLE)


def new_axes() -> tuple[Any, Any]:
  """Returns an empty figure and its axes."""
  from matplotlib.figure import Figure

  with style():
    figure = Figure(figsize=(6.4, 4.0), layout='constrained')
    return figure, figure.subplots()


def legend_beside(figure: Any, handles: Mapping[str, Any]) -> None:
  """Puts one legend for all axes to the right of a figure.

  Args:
    figure: a matplotlib Figure.
    handles: name -> what is drawn like that.
  """
  figure.legend(
    list(handles.values()),
    list(handles),
    loc='outside right upper',
    fontsize=8.5,
  )

"""Draws outputs token by token, each in the colour of its exit layer.

What the page and the terminal show as text, as a picture for places that take
nothing else. Lengths are in points, 72 to the inch, from the top left corner.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from calm_jax import records
from calm_jax.reporting import palette, pieces, styling

_MARGIN = 14.0
_TOKEN_SIZE, _TEXT_SIZE, _NUMBER_SIZE = 12.0, 10.0, 7.5
_BOX_HEIGHT, _PADDING, _BASELINE = 19.0, 4.0, 13.5
_WORD_GAP, _PIECE_GAP = 7.0, 1.5
# From one line of boxes to the next, numbers included; from text to text.
_LINE, _PARAGRAPH = 34.0, 15.0
_GREY = '#5b6270'
_LEGEND = 'decoder layers used by a token:'


class _Token(NamedTuple):
  """Where a token stands: its left edge in points, and its line."""

  text: str
  exit_layer: int
  left: float
  line: int
  width: float


def token_figure(
  samples: Sequence[records.SampleOutput],
  *,
  num_layers: int,
  width: float = 620.0,
) -> Any:
  """Draws inputs, and under each the early exit's output in colours.

  The number of layers that a token used stands under it; a legend has the
  colours of all L.

  Args:
    samples: what to draw, from top to bottom.
    num_layers: L.
    width: of the figure in points, at most; longer outputs take several lines.

  Returns:
    A matplotlib Figure.

  Raises:
    ValueError: if there is nothing to draw.
  """
  if not samples:
    raise ValueError('there is no sample to draw: give at least one.')
  inside = width - 2 * _MARGIN
  sources = [_shortened(sample.source, inside) for sample in samples]
  outputs = [_lay_out(sample.early, inside) for sample in samples]
  legend = _lay_out_legend(num_layers)
  with styling.style():
    figure, axes = _sheet(sources, outputs, legend)
    top = _MARGIN
    for source, tokens in zip(sources, outputs, strict=True):
      _write(axes, _MARGIN, top + _PARAGRAPH - 6.0, source)
      top += _PARAGRAPH
      for token in tokens:
        _draw(axes, token, top, num_layers)
        below = top + _LINE * token.line + _BOX_HEIGHT + 8.0
        middle = _MARGIN + token.left + token.width / 2
        _write(axes, middle, below, str(token.exit_layer), small=True)
      top += _LINE * (tokens[-1].line + 1) + _PARAGRAPH
    _write(axes, _MARGIN, top + _BASELINE, _LEGEND)
    for token in legend:
      _draw(axes, token, top, num_layers)
  return figure


def _lay_out(output: records.DecodedText, width: float) -> list[_Token]:
  """Places the tokens of an output, in as many lines as they need."""
  left, line, placed = 0.0, 0, []
  for piece, exit_layer in zip(output.pieces, output.exit_layers, strict=True):
    text = '(end)' if piece == pieces.END else pieces.printable(piece)
    needed = _text_width(text) + 2 * _PADDING
    if placed:
      left += _WORD_GAP if pieces.opens_word(piece) else _PIECE_GAP
    if placed and left + needed > width:
      left, line = 0.0, line + 1
    placed.append(_Token(text, exit_layer, left, line, needed))
    left += needed
  return placed


def _lay_out_legend(num_layers: int) -> list[_Token]:
  """Places one box per depth, to the right of what they mean."""
  left, placed = _text_width(_LEGEND, _TEXT_SIZE) + _WORD_GAP, []
  for layer in range(1, num_layers + 1):
    width = _text_width(str(layer)) + 2 * _PADDING
    placed.append(_Token(str(layer), layer, left, 0, width))
    left += width + _PIECE_GAP
  return placed


def _text_width(text: str, size: float = _TOKEN_SIZE) -> float:
  """Returns the width of a text in points."""
  from matplotlib import font_manager, textpath

  font = font_manager.FontProperties(family='DejaVu Sans', size=size)
  return textpath.text_to_path.get_text_width_height_descent(
    text, font, ismath=False
  )[0]


def _shortened(text: str, width: float) -> str:
  """Returns as much of a text as there is room for."""
  needed = _text_width(text, _TEXT_SIZE)
  while needed > width:
    letters = int(len(text) * width / needed) - 2
    text = text[:letters].rstrip() + '\u2026'
    needed = _text_width(text, _TEXT_SIZE)
  return text


def _sheet(
  sources: Sequence[str],
  outputs: Sequence[Sequence[_Token]],
  legend: Sequence[_Token],
) -> tuple[Any, Any]:
  """Returns a figure with room for it all, and axes that count in points."""
  from matplotlib.figure import Figure

  width = 2 * _MARGIN + max(
    *(token.left + token.width for row in (*outputs, legend) for token in row),
    *(_text_width(source, _TEXT_SIZE) for source in sources),
  )
  height = 2 * (_MARGIN + _PARAGRAPH * len(outputs)) + _BOX_HEIGHT
  height += _LINE * sum(tokens[-1].line + 1 for tokens in outputs)
  figure = Figure(figsize=(width / 72, height / 72))
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  axes.set_xlim(0, width)
  axes.set_ylim(height, 0)
  return figure, axes


def _draw(axes: Any, token: _Token, top: float, num_layers: int) -> None:
  """Draws a token's box and text; `top` is that of its output."""
  from matplotlib import patches

  left, top = _MARGIN + token.left, top + _LINE * token.line
  axes.add_patch(
    patches.FancyBboxPatch(
      (left, top),
      token.width,
      _BOX_HEIGHT,
      boxstyle='round,pad=0,rounding_size=3',
      facecolor=palette.depth_colour(token.exit_layer, num_layers),
      edgecolor='#8a9099',
      linewidth=0.4,
    )
  )
  axes.text(
    left + token.width / 2,
    top + _BASELINE,
    token.text,
    ha='center',
    fontsize=_TOKEN_SIZE,
    color=palette.text_colour(token.exit_layer, num_layers),
    parse_math=False,
  )


def _write(
  axes: Any, left: float, baseline: float, text: str, *, small: bool = False
) -> None:
  """Writes grey text from `left` on, or small and centred there."""
  axes.text(
    left,
    baseline,
    text,
    ha='center' if small else 'left',
    fontsize=_NUMBER_SIZE if small else _TEXT_SIZE,
    color=_GREY,
    parse_math=False,
  )

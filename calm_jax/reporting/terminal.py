"""Shows decoded tokens in a terminal, coloured by the layer they left at.

Colours are ANSI's 256; they are left out where output is not a terminal or the
user has set NO_COLOR (https://no-color.org), and then each token carries its
exit layer as a number instead, so that nothing is lost.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from calm_jax import records
from calm_jax.reporting import palette
from calm_jax.reporting.pieces import opens_word, printable

_RESET = '\x1b[0m'


def supports_colour(
  stream: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> bool:
  """Says whether colours should be written to a stream (stdout by default)."""
  stream = sys.stdout if stream is None else stream
  environment = os.environ if environment is None else environment
  if environment.get('NO_COLOR') or environment.get('TERM') == 'dumb':
    return False
  return bool(getattr(stream, 'isatty', lambda: False)())


def colour_tokens(
  pieces: Sequence[str],
  exit_layers: Sequence[int],
  *,
  num_layers: int,
  colour: bool,
) -> str:
  r"""Writes the tokens of one output in a line.

  Args:
    pieces: the tokenizer's pieces, one per token.
    exit_layers: layers used by each, 1..L.
    num_layers: L.
    colour: whether to colour them; otherwise each is followed by its layer.

  Raises:
    ValueError: if there are not as many pieces as exit layers.

  >>> colour_tokens(['\u2581I', '\u2581am', '</s>'], [1, 4, 2], num_layers=4,
  ...               colour=False)
  'I/1 am/4 </s>/2'
  """
  if len(pieces) != len(exit_layers):
    raise ValueError(
      f'{len(pieces)} pieces do not go with {len(exit_layers)} exit layers.'
    )
  return ''.join(
    colour_token(
      piece, exit_layer, num_layers=num_layers, colour=colour, first=not place
    )
    for place, (piece, exit_layer) in enumerate(
      zip(pieces, exit_layers, strict=True)
    )
  )


def colour_token(
  piece: str, exit_layer: int, *, num_layers: int, colour: bool, first: bool
) -> str:
  """Writes one token of a line, and what sets it off from the one before.

  Args:
    piece: the tokenizer's piece.
    exit_layer: layers used, 1..L.
    num_layers: L.
    colour: whether to colour it; otherwise its layer follows it.
    first: whether it opens the line.
  """
  # Nothing in it may move the cursor.
  shown = printable(piece)
  if not colour:
    return f'{"" if first else " "}{shown}/{exit_layer}'
  background, text = palette.ansi_colours(exit_layer, num_layers)
  gap = ' ' if opens_word(piece) and not first else ''
  return f'{gap}\x1b[48;5;{background};38;5;{text}m{shown}{_RESET}'


def legend(num_layers: int, *, colour: bool) -> str:
  """Writes what the colours mean."""
  if not colour:
    return f'token/exit layer, 1 to {num_layers}'
  layers = range(1, num_layers + 1)
  tokens = colour_tokens(
    [f' {layer} ' for layer in layers],
    layers,
    num_layers=num_layers,
    colour=True,
  )
  return f'exit layer {tokens}'


def render_output(
  output: records.DecodedText,
  *,
  num_layers: int,
  num_encoder_layers: int | None = None,
  colour: bool | None = None,
) -> str:
  """Writes one output with its legend.

  Args:
    output: the output.
    num_layers: L.
    num_encoder_layers: L_enc, said where its input left the encoder early.
    colour: whether to colour tokens; None asks the terminal.
  """
  colour = supports_colour() if colour is None else colour
  tokens = colour_tokens(
    output.pieces, output.exit_layers, num_layers=num_layers, colour=colour
  )
  chosen = output.exit_layers[output.prefix_length :]
  mean = sum(chosen) / max(len(chosen), 1)
  return (
    f'{tokens}\n{legend(num_layers, colour=colour)}   '
    f'mean {mean:.2f} of {num_layers} layers'
    f'{_of_encoder(output.encoder_exit_layer, num_encoder_layers)}'
  )


def _of_encoder(layer: int | None, num_layers: int | None) -> str:
  """Says where an input left the encoder; nothing if all of it ran."""
  if layer is None:
    return ''
  return f', encoder {layer} of {num_layers}'

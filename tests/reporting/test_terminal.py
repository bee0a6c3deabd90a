"""Tokens in a terminal: colours where they are wanted, numbers elsewhere."""

import io
import re

import pytest
from cases import example_result

from calm_jax import reporting
from calm_jax.reporting import palette

PIECES = ('\u2581I', '\u2581am', 'bling', '\u2581', '</s>')
LAYERS = (1, 4, 2, 3, 1)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_colours_only_on_a_terminal_that_wants_them():
  assert reporting.supports_colour(Terminal(), {})
  assert not reporting.supports_colour(io.StringIO(), {})
  assert not reporting.supports_colour(Terminal(), {'NO_COLOR': '1'})
  assert reporting.supports_colour(Terminal(), {'NO_COLOR': ''})
  assert not reporting.supports_colour(Terminal(), {'TERM': 'dumb'})


def test_without_colour_each_token_has_its_layer():
  line = reporting.colour_tokens(PIECES, LAYERS, num_layers=4, colour=False)
  assert line == 'I/1 am/4 bling/2 \u2423/3 </s>/1'


def test_with_colour_the_text_is_the_same_and_every_colour_is_reset():
  line = reporting.colour_tokens(PIECES, LAYERS, num_layers=4, colour=True)
  assert re.sub('\x1b\\[[0-9;]*m', '', line) == 'I ambling \u2423 </s>'
  assert line.count('\x1b[0m') == line.count('\x1b[48;5;') == len(PIECES)


@pytest.mark.parametrize('num_layers', [2, 4, 8, 11])
def test_layers_have_different_colours(num_layers):
  layers = range(1, num_layers + 1)
  assert len({palette.ansi_colours(n, num_layers) for n in layers}) == (
    num_layers
  )
  assert len({palette.depth_colour(n, num_layers) for n in layers}) == (
    num_layers
  )


@pytest.mark.parametrize('num_layers', [1, 2, 6, 8, 12, 24])
def test_colours_get_darker_and_their_text_stays_readable(num_layers):
  backgrounds = [
    palette._luminance(palette._blend(n, num_layers))
    for n in range(1, num_layers + 1)
  ]
  assert backgrounds == sorted(backgrounds, reverse=True)
  for layer, background in enumerate(backgrounds, 1):
    colour = palette.text_colour(layer, num_layers).lstrip('#')
    text = palette._luminance(tuple(bytes.fromhex(colour)))
    light, dark = max(text, background), min(text, background)
    assert (light + 0.05) / (dark + 0.05) > 3.9


def test_control_characters_of_a_token_are_not_passed_on():
  line = reporting.colour_tokens(
    ['\x1b[2Jgone', 'a\nb'], [1, 1], num_layers=2, colour=False
  )
  assert line == '\\x1b[2Jgone/1 a\\x0ab/1'


def test_an_output_comes_with_its_legend():
  output = example_result.evaluation_result().samples[1].early
  text = reporting.render_output(output, num_layers=8, colour=False)
  assert 'token/exit layer, 1 to 8' in text
  mean = sum(output.exit_layers) / len(output.exit_layers)
  assert f'mean {mean:.2f} of 8 layers' in text
  coloured = reporting.render_output(output, num_layers=8, colour=True)
  assert 'exit layer' in coloured


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match='2 pieces'):
    reporting.colour_tokens(['a', 'b'], [1], num_layers=2, colour=True)
  with pytest.raises(ValueError, match=r'exit_layer is 3, expected 1\.\.2'):
    reporting.colour_tokens(['a'], [3], num_layers=2, colour=True)

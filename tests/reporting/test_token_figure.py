"""Outputs as a picture: every token, in its colour and with its number."""

import dataclasses

import pytest
from cases import example_result

from calm_jax import reporting
from calm_jax.reporting import palette

pytest.importorskip('matplotlib')

L = example_result.NUM_LAYERS
SAMPLE = example_result.sample('one plus four', 'zehn Äpfel', 'x', 0.1, seed=3)


def with_pieces(*pieces_and_layers):
  pieces, exit_layers = zip(*pieces_and_layers, strict=True)
  early = dataclasses.replace(
    SAMPLE.early, pieces=pieces, exit_layers=exit_layers
  )
  return dataclasses.replace(SAMPLE, early=early)


def drawn(figure):
  """Returns (text, facecolor of the box behind it or None) as drawn."""
  axes = figure.axes[0]
  boxes = [box.get_window_extent() for box in axes.patches]
  found = []
  for text in axes.texts:
    place = axes.transData.transform(text.get_position())
    behind = [
      axes.patches[index].get_facecolor()
      for index, box in enumerate(boxes)
      if box.contains(*place)
    ]
    found.append((text.get_text(), behind[0] if behind else None))
  return found


def rgba(exit_layer):
  colour = palette.depth_colour(exit_layer, L)
  return (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)


def test_every_token_has_the_colour_of_its_depth_and_its_number():
  tokens = (('▁zehn', 1), ('▁Äp', 3), ('fel', 8), ('</s>', 2))
  found = drawn(reporting.token_figure([with_pieces(*tokens)], num_layers=L))
  assert found[0] == ('one plus four', None)
  words = ('zehn', 'Äp', 'fel', '(end)')
  for place, (word, (_, layer)) in enumerate(zip(words, tokens, strict=True)):
    text, colour = found[1 + 2 * place]
    assert text == word and colour == pytest.approx(rgba(layer))
    assert found[2 + 2 * place] == (str(layer), None)
  legend = found[-L:]
  assert [text for text, _ in legend] == [str(n + 1) for n in range(L)]
  assert [colour for _, colour in legend] == [
    pytest.approx(rgba(layer)) for layer in range(1, L + 1)
  ]


def test_boxes_hold_their_text_and_no_two_of_them_meet():
  long = with_pieces(*[(f'▁wort{n}', 1 + n % L) for n in range(40)])
  figure = reporting.token_figure([SAMPLE, long], num_layers=L)
  axes = figure.axes[0]
  boxes = [box.get_window_extent() for box in axes.patches]
  for index, box in enumerate(boxes):
    assert figure.bbox.contains(box.x0, box.y0)
    assert figure.bbox.contains(box.x1, box.y1)
    assert not any(box.overlaps(other) for other in boxes[index + 1 :])
  texts = [text.get_window_extent() for text in axes.texts]
  for box in boxes:
    assert any(
      box.x0 < text.x0 and text.x1 < box.x1 and box.y0 < text.y1 < box.y1
      for text in texts
    )


def test_long_inputs_are_cut():
  source = 'four days after Wednesday ' * 200
  sample = dataclasses.replace(SAMPLE, source=source)
  figure = reporting.token_figure([sample], num_layers=L)
  text = figure.axes[0].texts[0]
  assert text.get_text().startswith('four days') and text.get_text()[-1] == '…'
  assert text.get_window_extent().x1 < figure.bbox.x1


def test_longer_outputs_take_more_lines():
  heights = [
    reporting.token_figure(
      [with_pieces(*[('▁wort', 1)] * count)], num_layers=L
    ).get_size_inches()[1]
    for count in (2, 40)
  ]
  assert heights[0] < heights[1]


def test_dollars_are_no_mathematics(tmp_path):
  sample = with_pieces(('▁$5^', 1), ('▁$', 2))
  figure = reporting.token_figure([sample], num_layers=L)
  reporting.save_figure(figure, tmp_path / 'picture.png')
  assert ('$5^', pytest.approx(rgba(1))) in drawn(figure)


def test_nothing_to_draw_is_an_error():
  with pytest.raises(ValueError, match='at least one'):
    reporting.token_figure([], num_layers=L)

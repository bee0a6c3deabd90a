"""Figures: the points are where the numbers are."""

import dataclasses
import math

import numpy as np
import pytest
from cases import example_result

from calm_jax import reporting

pytest.importorskip('matplotlib')


def test_every_decode_is_a_point():
  result = example_result.evaluation_result()
  axes = reporting.quality_figure(result).axes[0]
  marked = {
    line.get_label(): line.get_xydata()
    for line in axes.get_lines()
    if not line.get_label().startswith('_')
  }
  np.testing.assert_allclose(marked['full model'], [[8.0, 86.2]])
  np.testing.assert_allclose(marked['early exit, certified'], [[3.18, 85.1]])
  np.testing.assert_allclose(marked['oracle'], [[1.7, 86.1]])
  assert len(marked['every token at one layer']) == 6
  assert len(marked['early exit, other thresholds']) == 4
  assert 'copy of the source' in marked
  assert 'ROUGE-L, %' in axes.get_ylabel()
  assert 'layers per token' in axes.get_xlabel()


def test_the_histogram_shows_shares():
  axes = reporting.exit_layer_figure(example_result.evaluation_result()).axes[0]
  early, oracle = axes.containers[0], axes.containers[1]
  assert [bar.get_height() for bar in early] == [31, 22, 14, 10, 8, 6, 5, 4]
  assert math.isclose(sum(bar.get_height() for bar in oracle), 100)


def test_figures_are_files_and_repeatable_svg(tmp_path):
  result = example_result.evaluation_result()
  for name in ('figure.png', 'figure.svg'):
    path = tmp_path / 'deep' / name
    reporting.save_figure(reporting.quality_figure(result), path)
    assert path.stat().st_size > 1000
  texts = {
    reporting.as_svg(reporting.exit_layer_figure(result)) for _ in range(2)
  }
  assert len(texts) == 1
  text = texts.pop()
  assert text.startswith('<svg') and text.rstrip().endswith('</svg>')


def test_names_with_dollars_are_drawn_as_they_are():
  result = example_result.evaluation_result()
  rows = tuple(
    dataclasses.replace(row, name=r'$\frac{ and $') for row in result.rows
  )
  result = dataclasses.replace(result, rows=rows)
  for draw in (reporting.quality_figure, reporting.exit_layer_figure):
    assert reporting.as_svg(draw(result)).startswith('<svg')


def test_what_cannot_be_drawn_is_named():
  result = example_result.evaluation_result()
  with pytest.raises(ValueError, match="no row has the metric 'bleu'"):
    reporting.quality_figure(dataclasses.replace(result, primary_metric='bleu'))
  with pytest.raises(ValueError, match='no row is an early exit'):
    reporting.exit_layer_figure(
      dataclasses.replace(result, rows=result.rows[:1])
    )

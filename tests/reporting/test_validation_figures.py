"""Figures of a validation: the curves are where the counts are."""

import numpy as np
import pytest
from cases import validation_cases

from calm_jax import reporting

pytest.importorskip('matplotlib')


@pytest.fixture(scope='module')
def validation(tmp_path_factory):
  return validation_cases.validation(tmp_path_factory.mktemp('figures'))


def _lines(axes):
  return {line.get_label(): line for line in axes.get_lines()}


def test_every_measure_has_its_curve_below_the_diagonal(validation):
  axes = reporting.risk_figure(validation).axes[0]
  lines = _lines(axes)
  diagonal = lines['risk = tolerance'].get_xydata()
  np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])
  colours = set()
  for table in validation.tables:
    points = lines[table.name].get_xydata()
    np.testing.assert_allclose(points[:, 0], table.curve.tolerances)
    np.testing.assert_allclose(points[:, 1], table.curve.mean_risks)
    colours.add(lines[table.name].get_color())
  assert len(colours) == len(validation.tables)
  # The splits of every table, and the mark of the legend.
  hollow = [x for x in axes.get_lines() if x.get_markerfacecolor() == 'none']
  np.testing.assert_allclose(
    hollow[0].get_ydata(), validation.tables[0].curve.split_risks
  )
  assert len(hollow) == len(validation.tables) + 1
  assert 'textual loss' in axes.get_xlabel()


def test_layers_are_drawn_below_the_full_model(validation):
  axes = reporting.depth_figure(validation).axes[0]
  lines = _lines(axes)
  for table in validation.tables:
    np.testing.assert_allclose(
      lines[table.name].get_ydata(), table.curve.mean_exit_layers
    )
  assert set(lines['full model (6 layers)'].get_ydata()) == {6}


def test_every_count_is_a_mark_with_its_interval(validation):
  axes = reporting.violation_figure(validation).axes[0]
  assert len(axes.containers) == len(validation.tables)
  for bars, table in zip(axes.containers, validation.tables, strict=True):
    counts = (*table.counts, *table.near_counts)
    np.testing.assert_allclose(
      bars[0].get_xydata(),
      [(count.tolerance, 100 * count.rate) for count in counts],
    )
    (intervals,) = bars[2]
    for (low, high), count in zip(
      intervals.get_segments(), counts, strict=True
    ):
      assert low[1] == pytest.approx(100 * count.rate_low)
      assert high[1] == pytest.approx(100 * count.rate_high)
  assert set(_lines(axes)['error rate (5 %)'].get_ydata()) == {5.0}


def test_unknown_depth_and_names_with_dollars_are_drawn(tmp_path):
  table = validation_cases.loss_table(r'$\frac{ $')
  del table.fingerprint['num_layers']
  validation = validation_cases.validation(tmp_path, table, num_draws=5)
  for draw in (
    reporting.risk_figure,
    reporting.depth_figure,
    reporting.violation_figure,
  ):
    assert reporting.as_svg(draw(validation)).startswith('<svg')


def test_without_curves_there_is_nothing_to_draw(tmp_path):
  validation = validation_cases.validation(
    tmp_path, validation_cases.loss_table(), num_draws=5, curve_points=0
  )
  for draw in (reporting.risk_figure, reporting.depth_figure):
    with pytest.raises(ValueError, match='curve_points'):
      draw(validation)


def test_speed_ups_are_drawn_where_they_were_measured(tmp_path, validation):
  with pytest.raises(ValueError, match='TIMED_INPUTS'):
    reporting.speed_figure(validation)
  timed = validation_cases.validation(tmp_path, speed_ups=(1, 1.2, 1.5, 2, 3))
  lines = _lines(reporting.speed_figure(timed).axes[0])
  first, second = timed.tables
  np.testing.assert_allclose(
    lines[first.name].get_ydata(), first.curve.mean_speed_ups
  )
  assert second.name not in lines

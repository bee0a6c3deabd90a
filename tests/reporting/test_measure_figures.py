"""The picture of measures: lines, stars and names are where the numbers are."""

import dataclasses

import numpy as np
import pytest

from calm_jax import records, reporting
from calm_jax.reporting import palette

pytest.importorskip('matplotlib')

LOSSES = (0.0, 0.04, 0.2, 0.5)


def line(name, shift=0.0, **changes):
  fields = dict(
    run='toy',
    name=name,
    kind='measure',
    loss='textual',
    metric='rouge_l',
    num_layers=6,
    settings=(0.9, 0.6, 0.3, 0.0),
    losses=LOSSES,
    exit_layers=tuple(np.array([5.0, 4.0, 3.0, 1.5]) + shift),
    costs=tuple(np.array([7.0, 6.0, 4.0, 2.0]) + shift),
    certified=(
      records.CertifiedPlace(0.05, 1),
      records.CertifiedPlace(0.1, None),
    ),
  )
  return records.MeasureLine(**{**fields, **changes})


def point(kind, layers, costs=()):
  return line(
    kind,
    kind=kind,
    settings=({},),
    losses=(0.0,),
    exit_layers=(layers,),
    costs=costs,
    certified=(),
  )


LINES = (
  line('margin'),
  line(r'$\frac{gate', 0.5),
  point('full model', 6.0, (6.5,)),
  point('oracle', 1.25),
)


def drawn(axes, x, y):
  """Returns the lines of the axes through these points."""
  return [
    one
    for one in axes.get_lines()
    if np.array_equal(np.ravel(one.get_xdata()), x)
    and np.array_equal(np.ravel(one.get_ydata()), y)
  ]


def test_every_measure_is_drawn_against_depth_and_cost():
  figure = reporting.measures_figure(LINES)
  for axes, field in zip(figure.axes, ('exit_layers', 'costs'), strict=True):
    looks = set()
    for measure in LINES[:2]:
      found = getattr(measure, field)
      (curve,) = drawn(axes, found, LOSSES)
      (star,) = drawn(axes, found[1:2], LOSSES[1:2])
      assert star.get_marker() == '*'
      assert star.get_color() == curve.get_color()
      looks.add((curve.get_color(), curve.get_marker()))
    assert len(looks) == 2
    assert {text.get_text() for text in axes.texts} == {
      'margin',
      r'\$\frac{gate',
    }
  depth, cost = figure.axes
  assert drawn(depth, [6.0], [0.0]) and drawn(cost, [6.5], [0.0])
  assert drawn(depth, [1.25], [0.0]) and not drawn(cost, [1.25], [0.0])
  # As high as is promised, and some more.
  assert 0.2 < depth.get_ylim()[1] < 0.3
  assert reporting.as_svg(figure).startswith('<svg')


def test_names_do_not_lie_on_each_other():
  """Those of lines that end low, and are named no higher, neither."""
  short = dict(losses=(0.0, 0.05, 0.06, 0.07))
  figure = reporting.measures_figure(
    [line(f'{n}', 0.1 * n, **short) for n in range(4)] + [line('long')]
  )
  for axes in figure.axes:
    heights = sorted(text.xyann[1] + text.xy[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.05 * axes.get_ylim()[1]


def test_without_costs_there_is_one_pair_of_axes():
  """And without certificates no level, and all of the losses."""
  bare = dataclasses.replace(LINES[0], costs=(), certified=())
  (axes,) = reporting.measures_figure([bare, LINES[1]]).axes
  assert axes.get_ylim()[1] == pytest.approx(0.252)
  (axes,) = reporting.measures_figure([bare]).axes
  assert axes.get_ylim()[1] > 0.5
  with pytest.raises(ValueError, match='nothing to draw'):
    reporting.measures_figure(LINES[2:])


def test_more_lines_than_colours():
  lines = [line(str(n), 0.1 * n) for n in range(len(palette.LINES) + 1)]
  assert len(reporting.measures_figure(lines).axes[0].texts) == len(lines)

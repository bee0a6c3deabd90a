"""Curves of a run: every exit's losses are where the log says."""

import numpy as np
import pytest

from calm_jax import reporting

pytest.importorskip('matplotlib')


def _log(num_layers=3):
  rows = [{'kind': 'start', 'step': 0}]
  for step in (10, 20, 30):
    losses = [4.0 / layer + 10.0 / step for layer in range(1, num_layers + 1)]
    rows.append({'kind': 'train', 'step': step, 'exit_losses': losses})
    rows.append(
      {
        'kind': 'evaluation',
        'step': step,
        **{f'validation_loss_exit_{i + 1}': x for i, x in enumerate(losses)},
      }
    )
  return rows


def test_every_exit_has_its_curves():
  axes = reporting.loss_figure(_log()).axes[0]
  labelled = {line.get_label(): line for line in axes.get_lines()}
  for layer in (1, 2, 3):
    expected = [[step, 4.0 / layer + 10.0 / step] for step in (10, 20, 30)]
    points = labelled[f'exit {layer}'].get_xydata()
    np.testing.assert_allclose(points, expected)
  assert len(axes.get_lines()) == 6
  assert len({line.get_color() for line in axes.get_lines()}) == 3


def test_exits_that_are_not_trained_leave_gaps():
  rows = [
    {'kind': 'train', 'step': 1, 'exit_losses': [None, 2.0]},
    {'kind': 'train', 'step': 2, 'exit_losses': [None, 1.0]},
  ]
  axes = reporting.loss_figure(rows).axes[0]
  assert np.isfinite(axes.get_ylim()).all()


def test_an_empty_log_is_refused():
  with pytest.raises(ValueError, match='nothing to draw'):
    reporting.loss_figure([{'kind': 'start', 'step': 0}])

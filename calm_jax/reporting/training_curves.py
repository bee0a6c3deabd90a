"""Draws how a training run went: the loss of every exit against steps.

Reads the rows of train_log.jsonl. Thin lines are means over the training steps
between two log lines, marks are evaluations on the validation split.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax.reporting import palette, styling


def loss_figure(rows: Iterable[Mapping[str, Any]]) -> Any:
  """Draws training and validation loss per exit layer.

  Args:
    rows: of train_log.jsonl, in their order.

  Returns:
    A matplotlib Figure; exits have the colours of the exit layers elsewhere.

  Raises:
    ValueError: if no row is of kind 'train' or 'evaluation'.
  """
  rows = list(rows)
  training = _training_losses(rows)
  validation = _validation_losses(rows)
  if not len(training.steps) and not len(validation.steps):
    raise ValueError(
      'the log has no row of kind train or evaluation: nothing to draw'
    )
  num_exits = max(training.losses.shape[1], validation.losses.shape[1])
  labelled = validation if len(validation.steps) else training
  figure, axes = styling.new_axes()
  with styling.style():
    for exit_layer in range(1, num_exits + 1):
      colour = palette.depth_colour(exit_layer, num_exits)
      for curve, form in (
        (training, {'linewidth': 0.8, 'alpha': 0.55}),
        (validation, {'marker': 'o', 'markersize': 4, 'linewidth': 1.4}),
      ):
        if curve.losses.shape[1] >= exit_layer:
          axes.plot(
            curve.steps,
            curve.losses[:, exit_layer - 1],
            color=colour,
            label=f'exit {exit_layer}' if curve is labelled else None,
            **form,
          )
    axes.set_xlabel('training steps')
    axes.set_ylabel('cross-entropy, nats per token')
    _zoom(axes, training, validation)
    axes.legend(loc='upper right', ncols=2, fontsize=8.5)
  return figure


class _Curve:
  """Losses [n, L] at steps [n]; n and L may be 0."""

  def __init__(self, steps: Sequence[int], losses: Sequence[Sequence[float]]):
    self.steps = np.array(steps, np.int64)
    num_exits = len(losses[0]) if losses else 0
    self.losses = np.array(losses, np.float64).reshape(len(losses), num_exits)


def _training_losses(rows) -> _Curve:
  rows = [row for row in rows if row.get('kind') == 'train']
  return _Curve(
    [row['step'] for row in rows], [row['exit_losses'] for row in rows]
  )


def _validation_losses(rows) -> _Curve:
  rows = [row for row in rows if row.get('kind') == 'evaluation']
  rows = [row for row in rows if 'validation_loss_exit_1' in row]
  prefix = 'validation_loss_exit_'
  layers = sorted(
    int(name.removeprefix(prefix))
    for name in (rows[0] if rows else ())
    if name.startswith(prefix)
  )
  return _Curve(
    [row['step'] for row in rows],
    [[row[f'{prefix}{layer}'] for layer in layers] for row in rows],
  )


def _zoom(axes, training: _Curve, validation: _Curve) -> None:
  """Cuts the first fall of the loss off, which would flatten all the rest."""
  seen = validation if len(validation.steps) else training
  top = np.nanmax(seen.losses[:2])
  bottom = min(
    np.nanmin(curve.losses)
    for curve in (training, validation)
    if curve.losses.size
  )
  axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))

"""What a person and a program can read about a run while it trains.

`ProgressReport` gathers metrics of steps without waiting for the device, and
turns them into one printed line and one JSONL row when asked. Lines are plain
text ended by a newline, so that a log file reads like the terminal.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax.training.state import StepMetrics


class ProgressReport:
  """Averages metrics between log lines and keeps the clock.

  Time spent in `pause()` (evaluation, checkpoints) does not count in rates.
  """

  def __init__(self, num_steps: int, *, seconds: float):
    """Starts the clock.

    Args:
      num_steps: steps of the whole run.
      seconds: training time of earlier starts of the same run.
    """
    self._num_steps = num_steps
    self._earlier_seconds = seconds
    self._start = time.monotonic()
    self._steps_since: list[tuple[int, StepMetrics]] = []
    self._rate = None
    self._restart_interval()

  def _restart_interval(self) -> None:
    self._interval_start = time.monotonic()
    self._paused = 0.0
    self._steps_since = []

  @property
  def seconds(self) -> float:
    """Wall-clock time of the run so far, earlier starts included."""
    return self._earlier_seconds + time.monotonic() - self._start

  def add(self, step: int, metrics: StepMetrics) -> None:
    """Takes the metrics of a step; they may still be under way."""
    self._steps_since.append((step, metrics))

  def pause(self, seconds: float) -> None:
    """Leaves `seconds` out of the rates."""
    self._paused += seconds

  def flush(self, learning_rate: float) -> dict[str, Any]:
    """Waits for the device and returns a row about the steps since the last.

    Raises:
      NonFiniteLoss: at the first step with a NaN or infinity.
    """
    gathered = jax.device_get(self._steps_since)
    elapsed = time.monotonic() - self._interval_start - self._paused
    self._restart_interval()
    for step, metrics in gathered:
      if not np.isfinite([metrics.loss, metrics.gradient_norm]).all():
        raise NonFiniteLoss(step, float(metrics.loss))
    metrics = [metrics for _, metrics in gathered]
    tokens = np.array([m.exits.num_tokens for m in metrics], np.float64)
    self._rate = len(metrics) / max(elapsed, 1e-9)
    return {
      'step': gathered[-1][0],
      'loss': float(np.mean([m.loss for m in metrics])),
      'exit_losses': _means([m.exits.losses for m in metrics], tokens),
      'exit_accuracies': _means([m.exits.accuracies for m in metrics], tokens),
      'gradient_norm': float(np.mean([m.gradient_norm for m in metrics])),
      'learning_rate': learning_rate,
      'steps_per_second': self._rate,
      'tokens_per_second': float(tokens.sum() / max(elapsed, 1e-9)),
      'seconds': self.seconds,
    }

  @property
  def has_steps(self) -> bool:
    """Whether steps were added since the last flush."""
    return bool(self._steps_since)

  def line(self, row: Mapping[str, Any], *, limit: float | None = None) -> str:
    """Returns a row as a line for a person.

    Args:
      row: from `flush`.
      limit: seconds after which the run ends anyway, or None.
    """
    left = (self._num_steps - row['step']) / self._rate
    if limit is not None:
      left = min(left, max(limit - row['seconds'], 0.0))
    losses = [loss for loss in row['exit_losses'] if np.isfinite(loss)]
    accuracy = [value for value in row['exit_accuracies'] if np.isfinite(value)]
    return (
      f'step {row["step"]:>{len(str(self._num_steps))}}/{self._num_steps}'
      f'  loss {row["loss"]:.3f}'
      f'  exits {losses[0]:.3f} > {losses[-1]:.3f}'
      f'  accuracy {accuracy[-1]:.3f}'
      f'  {row["steps_per_second"]:.2f} steps/s'
      f'  {row["tokens_per_second"]:,.0f} tokens/s'
      f'  lr {row["learning_rate"]:.2e}'
      f'  {_duration(row["seconds"])}, {_duration(left)} left'
    )


class NonFiniteLoss(Exception):
  """A loss or gradient was NaN or infinite."""

  def __init__(self, step: int, loss: float):
    super().__init__(step, loss)
    self.step = step
    self.loss = loss


def evaluation_line(step: int, values: Mapping[str, float], note: str) -> str:
  """Returns an evaluation as a line, without the numbers per exit."""
  shown = '  '.join(
    f'{name} {value:.4g}'
    for name, value in values.items()
    if '_exit_' not in name
  )
  return f'  evaluated at step {step}: {shown}{note}'


def _means(values: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
  """Returns means over tokens [L], each of the steps that read the exit.

  Args:
    values: per step float32 [L], NaN for exits that the step did not read.
    tokens: float64 [steps].
  """
  rows = np.array(values)
  read = ~np.isnan(rows)
  weights = tokens[:, None] * read
  means = (weights * np.where(read, rows, 0.0)).sum(axis=0)
  return np.where(
    read.any(axis=0), means / np.maximum(weights.sum(axis=0), 1.0), np.nan
  )


def _duration(seconds: float) -> str:
  """Formats seconds as s, min or h.

  >>> _duration(42), _duration(135), _duration(5400)
  ('42 s', '2.2 min', '1.5 h')
  """
  if seconds < 60:
    return f'{seconds:.0f} s'
  if seconds < 3600:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'

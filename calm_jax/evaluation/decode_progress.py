"""How far a decode of many inputs is: tokens per second and what is left."""

import time
from collections.abc import Callable

import numpy as np

from calm_jax.evaluation import compile_clock


class DecodeProgress:
  """Says now and then how far it is, how fast, and how long it will take."""

  def __init__(
    self,
    say: Callable[[str], None] | None,
    total: int | None,
    *,
    seconds_between: float = 5.0,
  ):
    """Starts the clock.

    Args:
      say: gets a line now and then; nothing is said if None.
      total: inputs in all, if known.
      seconds_between: at least so long between two lines.
    """
    self._say = say
    self._total = total
    self._seconds_between = seconds_between
    self._found = self._inputs = self._tokens = self._layers = 0
    self._start = self._last = time.perf_counter()
    self._compiled = compile_clock.compile_seconds()

  def found_one(self) -> None:
    """Counts an input that was decoded before."""
    self._found += 1

  def update(self, exit_layers: np.ndarray) -> None:
    """Counts a batch; says something if the last line is old enough.

    Args:
      exit_layers: int [B, T] of the inputs, -1 where nothing was decoded.
    """
    used = exit_layers[exit_layers > 0]
    self._inputs += len(exit_layers)
    self._tokens += used.size
    self._layers += int(used.sum())
    now = time.perf_counter()
    if self._say is None or now - self._last < self._seconds_between:
      return
    self._last = now
    compiled = compile_clock.compile_seconds() - self._compiled
    seconds = max(now - self._start - compiled, 1e-9)
    done = self._found + self._inputs
    of, left = '', ''
    if self._total is not None:
      of = f' of {self._total}'
      rest = (self._total - done) * seconds / self._inputs
      left = f', about {duration(rest)} left'
    self._say(
      f'decoded {done}{of} inputs, {self._tokens / seconds:.0f} tokens/s, '
      f'mean exit layer {self._layers / max(self._tokens, 1):.2f}{left}'
    )


def duration(seconds: float) -> str:
  """Returns a duration in words.

  >>> [duration(seconds) for seconds in (0.4, 75, 7260)]
  ['0 s', '1 min 15 s', '2 h 1 min']
  """
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'

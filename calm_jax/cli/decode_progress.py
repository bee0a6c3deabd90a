"""How far a job that decodes lines is: tokens per second and what is left."""

import time
from collections.abc import Callable, Sequence

from calm_jax import pipeline
from calm_jax.evaluation import compile_clock
from calm_jax.evaluation.decode_progress import duration

_SECONDS_BETWEEN_LINES = 5


class DecodeProgress:
  """Says now and then how far it is, how fast, and how long it will take."""

  def __init__(
    self, say: Callable[[str], None], total: int | None, *, there: int
  ):
    """Starts the clock.

    Args:
      say: gets a line now and then.
      total: inputs in all, if known.
      there: how many of them were done before.
    """
    self._say = say
    self._total = total
    self._there = there
    self._inputs = self._tokens = self._chosen = self._layers = 0
    self._start = self._last = time.perf_counter()
    self._compiled = compile_clock.compile_seconds()

  def update(self, outputs: Sequence[Sequence[pipeline.GeneratedText]]) -> None:
    """Counts a batch; says something if the last line is old enough."""
    self._inputs += len(outputs)
    for output in (output for samples in outputs for output in samples):
      self._tokens += len(output.tokens)
      self._chosen += len(output.chosen_layers)
      self._layers += sum(output.chosen_layers)
    now = time.perf_counter()
    if now - self._last < _SECONDS_BETWEEN_LINES:
      return
    self._last = now
    seconds = self._seconds()
    of, left = '', ''
    if self._total is not None:
      of = f' of {self._total}'
      rest = max(self._total - self._there - self._inputs, 0)
      left = f', about {duration(rest * seconds / self._inputs)} left'
    self._say(
      f'{self._there + self._inputs}{of} inputs, '
      f'{self._tokens / seconds:.0f} tokens/s{left}'
    )

  def finish(self, num_layers: int) -> None:
    """Says what was done."""
    there = f'{self._there} inputs were there already; ' if self._there else ''
    if not self._inputs:
      self._say(f'{there}nothing was left to decode')
      return
    seconds = self._seconds()
    compiled = time.perf_counter() - self._start - seconds
    self._say(
      f'{there}{self._inputs} inputs, {self._tokens} tokens in '
      f'{duration(seconds)} ({self._tokens / seconds:.0f} tokens/s) and '
      f'{duration(compiled)} of compiling, mean exit layer '
      f'{self._layers / max(self._chosen, 1):.2f} of {num_layers}'
    )

  def _seconds(self) -> float:
    """Returns the seconds spent on anything but compiling."""
    compiled = compile_clock.compile_seconds() - self._compiled
    return max(time.perf_counter() - self._start - compiled, 1e-9)

"""How far a decode of many inputs is: tokens per second and what is left."""

import time
from collections.abc import Callable, Iterable

from calm_jax.evaluation import compile_clock


class DecodeProgress:
  """Says now and then how far it is, how fast, and how long it will take."""

  def __init__(
    self,
    say: Callable[[str], None] | None,
    total: int | None,
    *,
    there: int = 0,
    seconds_between: float = 5.0,
  ):
    """Starts the clock.

    Args:
      say: gets a line now and then; nothing is said if None.
      total: inputs in all, if known.
      there: how many of them were decoded before.
      seconds_between: at least so long between two lines.
    """
    self._say = say
    self._total = total
    self._there = there
    self._seconds_between = seconds_between
    self._inputs = self._tokens = self._exits = self._layers = 0
    self._sources = self._encoder_layers = 0
    self._start = self._last = time.perf_counter()
    self._compiled = compile_clock.compile_seconds()

  def found_one(self) -> None:
    """Counts an input that was decoded before."""
    self._there += 1

  def update(
    self,
    num_inputs: int,
    num_tokens: int,
    exit_layers: Iterable[int],
    encoder_layers: Iterable[int] = (),
  ) -> None:
    """Counts a batch; says something if the last line is old enough.

    Args:
      num_inputs: of the batch.
      num_tokens: of its outputs.
      exit_layers: of the tokens that were chosen and not forced, 1..L.
      encoder_layers: of the sources, 1..L_enc, where they may leave early.
    """
    exit_layers = tuple(exit_layers)
    self._inputs += num_inputs
    self._tokens += num_tokens
    self._exits += len(exit_layers)
    self._layers += sum(exit_layers)
    encoder_layers = tuple(map(int, encoder_layers))
    self._sources += len(encoder_layers)
    self._encoder_layers += sum(encoder_layers)
    now = time.perf_counter()
    if self._say is None or now - self._last < self._seconds_between:
      return
    self._last = now
    seconds = self._seconds()
    done = self._there + self._inputs
    of, left = '', ''
    if self._total is not None:
      of = f' of {self._total}'
      rest = max(self._total - done, 0) * seconds / self._inputs
      left = f', about {duration(rest)} left'
    self._say(
      f'decoded {done}{of} inputs, {self._tokens / seconds:.0f} tokens/s, '
      f'mean exit layer {self._mean_exit_layer():.2f}{self._encoder()}{left}'
    )

  def finish(self, num_layers: int) -> None:
    """Says what was done; `num_layers` is L."""
    if self._say is None:
      return
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
      f'{self._mean_exit_layer():.2f} of {num_layers}{self._encoder()}'
    )

  def _seconds(self) -> float:
    """Returns the seconds spent on anything but compiling."""
    compiled = compile_clock.compile_seconds() - self._compiled
    return max(time.perf_counter() - self._start - compiled, 1e-9)

  def _encoder(self) -> str:
    if not self._sources:
      return ''
    return f', mean encoder layer {self._encoder_layers / self._sources:.2f}'

  def _mean_exit_layer(self) -> float:
    return self._layers / max(self._exits, 1)


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

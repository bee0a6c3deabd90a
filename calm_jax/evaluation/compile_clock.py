"""How long this process has spent compiling, so that timings can leave it out.

JAX reports the duration of tracing, lowering and compiling through
`jax.monitoring` as each of them ends; this adds them up from the first time it
is asked. Tracing one function reports those that it calls as well, so a span
that lies inside a longer one counts once.
"""

import functools
import time

import jax

_EVENTS = '/jax/core/compile/'


def compile_seconds() -> float:
  """Returns the seconds spent compiling since the first call."""
  return sum(end - start for start, end in _spans())


class CompiledClock:
  """Seconds since it was made, compiling left out."""

  def __init__(self):
    """Starts."""
    self._start, self._compiled = time.perf_counter(), compile_seconds()

  def seconds(self) -> float:
    """Returns them; above 0."""
    compiled = compile_seconds() - self._compiled
    return max(time.perf_counter() - self._start - compiled, 1e-9)


@functools.cache
def _spans() -> list[tuple[float, float]]:
  """Returns the spans seen so far, disjoint; later ones are added to it."""
  spans: list[tuple[float, float]] = []

  def listen(event: str, seconds: float, **_):
    if not event.startswith(_EVENTS):
      return
    end = time.perf_counter()
    while spans and spans[-1][0] >= end - seconds:
      spans.pop()
    spans.append((end - seconds, end))

  jax.monitoring.register_event_duration_secs_listener(listen)
  return spans

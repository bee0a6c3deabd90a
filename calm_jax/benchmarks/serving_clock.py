"""When the tokens of requests arrive: inner-token latency."""

import time
from collections.abc import Callable, Mapping

import numpy as np


class TokenClock:
  """Notes when tokens of requests were there; a `watch` of `decode_queue`.

  The wait of a token is the time since its request's token before it was there.
  First tokens have none. Tokens that one look finds are there together, so that
  all but the first of them have waited 0.
  """

  def __init__(self, now: Callable[[], float] = time.perf_counter):
    """Nothing is there yet.

    Args:
      now: the time in seconds.
    """
    self._now = now
    self._seen: dict[int, tuple[int, float]] = {}
    self._waits: list[float] = []

  def __call__(self, lengths: Mapping[int, int]) -> None:
    """Notes what is there now.

    Args:
      lengths: request -> how many tokens it has.
    """
    now = self._now()
    for request, length in lengths.items():
      before, then = self._seen.get(request, (0, now))
      if length == before:
        continue
      if before:
        self._waits.append(now - then)
      self._waits.extend([0.0] * (length - before - 1))
      self._seen[request] = length, now

  @property
  def waits(self) -> np.ndarray:
    """Seconds that tokens waited, float64 [n]."""
    return np.array(self._waits)

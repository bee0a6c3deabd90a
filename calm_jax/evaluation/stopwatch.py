"""Wall clocks that may be compared: everything measured in turns.

A machine that slows down for a while slows whatever runs then. So the things
that are compared run one after the other, again and again, and medians of the
same turns stand side by side.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

Key = TypeVar('Key')


class AfterStart(NamedTuple):
  """Something to time after something that is not timed.

  Attributes:
    start: called before each turn, and waited for.
    run: called with what `start` returned; this is timed.
  """

  start: Callable[[], Any]
  run: Callable[[Any], object]

  def __call__(self) -> object:
    """Does both."""
    return self.run(self.start())


def interleaved_seconds(
  runs: Mapping[Key, Callable[[], object] | AfterStart], num_repeats: int
) -> dict[Key, list[float]]:
  """Returns how long each run took, in turns: name -> `num_repeats` seconds.

  Args:
    runs: name -> what to time. It should have run once before, to be compiled;
      whatever arrays it returns are waited for.
    num_repeats: how many turns, 1 or more.

  Raises:
    ValueError: if there are no turns.
  """
  if num_repeats < 1:
    raise ValueError(f'num_repeats is {num_repeats}, expected 1 or more.')
  seconds: dict[Key, list[float]] = {name: [] for name in runs}
  for _ in range(num_repeats):
    for name, run in runs.items():
      if isinstance(run, AfterStart):
        run = functools.partial(run.run, jax.block_until_ready(run.start()))
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds[name].append(time.perf_counter() - start)
  return seconds

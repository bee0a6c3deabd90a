"""The wall clock of a tuning: what it has left, and what candidates take."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax import decoding, interfaces, records
from calm_jax.evaluation.candidates import FULL_MODEL, Candidate
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.timing import OfModel, take_batches, time_decode
from calm_jax.evaluation.tuning_plan import TuningPlan

# Of the time, for losses of the rows that screen; the clock and the tests have
# the rest.
_SCREENING = 0.4

# Weights -> the decoder bound to each depth loop that it may serve with.
Bind = Callable[[Any], Mapping[str, interfaces.BoundDecoder]]


class Budget:
  """How much time is left of what a tuning may take."""

  def __init__(self, minutes: float | None):
    """Starts the clock; None for no limit."""
    self._start = time.monotonic()
    self._seconds = float('inf') if minutes is None else 60 * minutes

  def left(self) -> float:
    """Returns the seconds left, inf if there is no limit."""
    return self._start + self._seconds - time.monotonic()

  def screens(self) -> bool:
    """Whether there is time to screen one more candidate."""
    return self.left() >= (1 - _SCREENING) * self._seconds

  def describe(self) -> str:
    """Says what is left; nothing where there is no limit."""
    if self._seconds == float('inf'):
      return ''
    return f', {max(0.0, self.left()) / 60:.1f} minutes left'


@dataclasses.dataclass(frozen=True)
class Clocked:
  """What candidates take.

  Attributes:
    full: the full model's timing.
    candidates: a timing for each candidate.
  """

  full: records.TimingRow
  candidates: tuple[records.TimingRow, ...]


def clocked_batches(
  batches: Sequence[Batch], plan: TuningPlan
) -> list[dict[str, Any]]:
  """Returns the batches that are measured.

  Raises:
    ValueError: if the rows that screen do not fill one.
  """
  try:
    return take_batches(
      batches, batch_size=plan.batch_size, num_batches=plan.num_timed
    )
  except ValueError as error:
    raise ValueError(f'of the rows that screen, {error}') from None


def clock(
  bind: Bind,
  batches: Sequence[dict[str, Any]],
  candidates: Sequence[Candidate],
  plan: TuningPlan,
  *,
  max_length: int,
  eos_id: int,
  suppressed_tokens: Sequence[int],
  progress: Callable[[str], None] | None,
) -> Clocked:
  """Measures the full model and C candidates, in turns, on the same batches.

  Args:
    bind: gives the decoder with these weights in the depth loops to try, by
      their names in `decoding.DEPTH_LOOPS`.
    batches: those of `clocked_batches`.
    candidates: C of them, with different labels.
    plan: how often each is measured.
    max_length: T, the most tokens of an output.
    eos_id: the id that ends a sequence.
    suppressed_tokens: ids that are never said.
    progress: gets a line per candidate.
  """
  bound = {
    weights: bind(weights)
    for weights in dict.fromkeys([None, *(one.weights for one in candidates)])
  }
  full, *rows = time_decode(
    bound[None],
    batches,
    {
      FULL_MODEL: decoding.ComputePolicy(),
      **{
        one.label: OfModel(one.policy, bound[one.weights]) for one in candidates
      },
    },
    max_length=max_length,
    baseline=FULL_MODEL,
    eos_id=eos_id,
    suppressed_tokens=suppressed_tokens,
    num_repeats=plan.repeats,
    progress=progress,
  )
  return Clocked(full, tuple(rows))


def fitting(
  sequence: Sequence[int],
  seconds: Sequence[float],
  tests: Sequence[float],
  *,
  left: float,
  error_rate: float,
) -> tuple[int, ...]:
  """Returns as many of a sequence as there is time to test, evenly thinned.

  Args:
    sequence: candidates, safest first.
    seconds: [C], what the rows that test will take at each, about.
    tests: [C], their p-values on the rows that screen.
    left: the seconds that are left.
    error_rate: in (0, 1).

  Returns:
    One of them at least, if there is one: then the fastest that the rows that
    screen would have certified, or the safest.
  """
  number = len(sequence)
  while number > 1:
    step = (len(sequence) - 1) / (number - 1)
    kept = tuple(sequence[round(place * step)] for place in range(number))
    if sum(seconds[place] for place in kept) <= left:
      return kept
    number -= 1
  passing = [place for place in sequence if tests[place] <= error_rate]
  return tuple(passing[-1:] or sequence[:1])

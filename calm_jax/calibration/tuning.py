"""A setting of one of many policies, chosen and certified: the whole of it.

`tune_on_table` does on tables of losses what `calm_jax.cli.tune` does on
inputs: one half of the rows screens the candidates, the other half tests those
that screening left, in the order that it left them in.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calm_jax.calibration import inputs, joint, p_values, pareto
from calm_jax.calibration.bounds import Bound

# Of rows that screen; the others test.
SCREENING_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Tuned:
  """What was certified of C candidates, and which of them is the fastest.

  Attributes:
    screening: what was tested, and in what order.
    p_values: of the tested ones, in the order of the sequence, up to the first
      that failed.
    certified: those that passed. All of them hold together with probability at
      least 1 - error_rate.
    chosen: the fastest of these; None if there is none.
  """

  screening: pareto.Screening
  p_values: tuple[float, ...]
  certified: tuple[int, ...]
  chosen: int | None


def tune_on_table(
  losses: Sequence[np.ndarray],
  times: ArrayLike,
  promises: Sequence[Bound],
  *,
  screening_rows: ArrayLike,
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  time_to_beat: float = np.inf,
) -> Tuned:
  """Chooses the fastest candidate that surely keeps all promises.

  P(E[loss_k] <= tolerance_k for all k, at the chosen one) >= 1 - error_rate
  over the draw of the rows that test, whatever the other rows were and however
  many candidates there are. The rows must be exchangeable with the inputs
  served later, and which of them screen must not depend on what is in them.

  Args:
    losses: K tables [N, C] of the same rows and candidates, one per promise.
    times: [C], what each candidate takes on the device that will serve.
    promises: K bounds.
    screening_rows: indices of the rows that screen; all others test.
    error_rate: in (0, 1).
    p_value: as for `calibrate_jointly`.
    time_to_beat: see `pareto.screen`.

  Raises:
    ValueError: as `calibrate_jointly`; if one of the halves has no rows.

  >>> losses = np.tile([0.0, 0.1, 0.9], (200, 1))
  >>> found = tune_on_table(
  ...   [losses], [3.0, 2.0, 1.0], [Bound(loss='textual', tolerance=0.2)],
  ...   screening_rows=np.arange(100),
  ... )
  >>> found.screening.sequence, found.certified, found.chosen
  ((0, 1, 2), (0, 1), 1)
  """
  inputs.check_error_rate(error_rate)
  tables = [np.asarray(table) for table in losses]
  screens = np.zeros(len(tables[0]) if tables else 0, bool)
  screens[np.asarray(screening_rows, int)] = True
  if screens.all() or not screens.any():
    raise ValueError(
      f'{screens.sum()} of {screens.size} rows screen: give some, and leave '
      'some to test'
    )
  found = pareto.screen(
    [table[screens] for table in tables],
    times,
    promises,
    p_value=p_value,
    time_to_beat=time_to_beat,
  )
  tests: list[float] = []
  while (
    place := next_candidate(tests, found.sequence, error_rate)
  ) is not None:
    columns = [table[~screens][:, [place]] for table in tables]
    (test,) = joint.joint_p_values(columns, promises, p_value=p_value)
    tests.append(float(test))
  return certified_of(found, tests, error_rate)


def next_candidate(
  tests: Sequence[float], sequence: Sequence[int], error_rate: float
) -> int | None:
  """Returns the candidate to test next; None where testing ends.

  Args:
    tests: the p-values so far, in the order of the sequence.
    sequence: the candidates in their order.
    error_rate: in (0, 1).
  """
  failed = bool(tests) and tests[-1] > error_rate
  return None if failed or len(tests) == len(sequence) else sequence[len(tests)]


def certified_of(
  screening: pareto.Screening, tests: Sequence[float], error_rate: float
) -> Tuned:
  """Returns what p-values of the sequence certify.

  A sequence that ends early, because time is over, certifies what passed.
  """
  passed = [test <= error_rate for test in tests]
  number = passed.index(False) if False in passed else len(passed)
  certified = screening.sequence[:number]
  # Each of a front is faster than those before.
  chosen = certified[-1] if certified else None
  return Tuned(screening, tuple(tests), certified, chosen)


def split_rows(
  number: int, *, seed: int = 0, share: float = SCREENING_SHARE
) -> np.ndarray:
  """Returns which of N rows screen, ascending; the others test.

  Args:
    number: N, at least 2.
    seed: of the draw.
    share: of the rows that screen, in (0, 1).

  Raises:
    ValueError: for numbers out of range.

  >>> split_rows(6, seed=1).size
  3
  """
  if number < 2:
    raise ValueError(
      f'{number} rows cannot screen and test; it takes two at least, and '
      'hundreds to certify anything'
    )
  if not 0 < share < 1:
    raise ValueError(f'the share of rows that screen is {share}, not in (0, 1)')
  size = min(max(1, round(share * number)), number - 1)
  return np.sort(np.random.default_rng(seed).permutation(number)[:size])

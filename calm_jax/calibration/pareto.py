"""Which of many candidates are worth a test, and in what order?

Pareto testing (Laufer-Goldshtein et al., arXiv 2210.07913). Candidates, of one
policy or of many, are screened on rows that test nothing: of those that no
other beats in safety and in time a front is left, and it is ordered from safe
to fast. Only then other rows test it, in that order, each at the whole error
rate, until one fails. The order was fixed before these rows were looked at, so
that none of the error rate pays for the number of candidates.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calm_jax.calibration import joint, p_values
from calm_jax.calibration.bounds import Bound


@dataclasses.dataclass(frozen=True)
class Screening:
  """What screening says of C candidates.

  Attributes:
    safest_first: [C], all candidates; the one that a test passes most easily
      comes first.
    front: the ones that no other beats, safest first, each faster than the one
      before.
    sequence: those of the front to test, in that order: the ones that would be
      chosen, if they were certified, over what needs no certificate.
    p_values: [C], the largest of the promises', on the rows of the screening.
  """

  safest_first: tuple[int, ...]
  front: tuple[int, ...]
  sequence: tuple[int, ...]
  p_values: tuple[float, ...]


def pareto_front(risks: ArrayLike, times: ArrayLike) -> np.ndarray:
  """Returns the candidates that no other beats, safest first.

  One beats another if it is no worse in risk and in time, and better in one of
  them. Of equals the first is kept.

  Args:
    risks: [C], anything that is smaller for safer candidates.
    times: [C], anything that is smaller for faster ones.

  Returns:
    Indices, by rising risk and falling time.

  Raises:
    ValueError: for numbers that are not finite, or not equally many.

  >>> pareto_front([0.1, 0.3, 0.2, 0.2], [9.0, 5.0, 6.0, 7.0]).tolist()
  [0, 2, 1]
  """
  risks, times = _finite('risks', risks), _finite('times', times)
  if risks.shape != times.shape:
    raise ValueError(
      f'{risks.size} risks and {times.size} times should be equally many'
    )
  front: list[int] = []
  # The first of equals, the fastest of the equally safe.
  for place in np.lexsort((np.arange(risks.size), times, risks)):
    if not front or times[place] < times[front[-1]]:
      front.append(int(place))
  return np.array(front, int)


def screen(
  losses: Sequence[np.ndarray],
  times: ArrayLike,
  promises: Sequence[Bound],
  *,
  p_value: p_values.PValue | None = None,
  time_to_beat: float = np.inf,
) -> Screening:
  """Orders candidates by rows that test nothing.

  Args:
    losses: K tables [n, C], one per promise, on the rows of the screening.
    times: [C], what a token, or anything, takes; in (0, inf).
    promises: K bounds, as for `calibrate_jointly`.
    p_value: as for `calibrate_jointly`; it is what the test will use.
    time_to_beat: of the fastest way of decoding that needs no certificate. Who
      is no faster is not tested: it would not be chosen.

  Raises:
    ValueError: as `calibrate_jointly`, and for times that are none.
  """
  tests = joint.joint_p_values(losses, promises, p_value=p_value)
  times = _finite('times', times)
  order = safest_first(tests, excesses(losses, promises), times)
  ranks = np.empty(order.size)
  ranks[order] = np.arange(order.size)
  front = pareto_front(ranks, times)
  return Screening(
    safest_first=tuple(order.tolist()),
    front=tuple(front.tolist()),
    sequence=tuple(c for c in front.tolist() if times[c] < time_to_beat),
    p_values=tuple(tests.tolist()),
  )


def safest_first(
  tests: np.ndarray, excess: np.ndarray, times: np.ndarray
) -> np.ndarray:
  """Returns candidates by p-value; of equal ones those of less excess first.

  Works on many screenings at once: candidates are the last axis.
  """
  return np.lexsort((times + np.zeros_like(tests), excess, tests), axis=-1)


def excesses(
  losses: Sequence[np.ndarray], promises: Sequence[Bound]
) -> np.ndarray:
  """Returns how far mean losses are above their tolerances, at most [C].

  In shares of the losses' ranges, and of the promise that is furthest above.
  """
  return np.max(
    [
      (np.mean(table, axis=0) - bound.tolerance)
      / (bound.loss_range[1] - bound.loss_range[0])
      for table, bound in zip(losses, promises, strict=True)
    ],
    axis=0,
  )


def _finite(name: str, values: ArrayLike) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not values.size or not np.isfinite(values).all():
    raise ValueError(
      f'{name} must be finite numbers, one per candidate and at least one, not '
      f'{values}'
    )
  return values

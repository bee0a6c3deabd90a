"""Procedures that test many settings and keep the error rate of the family.

A procedure looks at the p-values of J settings, in their testing order, and
rejects some of the hypotheses "this setting's risk is above the tolerance", so
that the probability of even one false rejection is at most the error rate. It
also says which p-value it needs next, so that settings which cannot be rejected
any more are never decoded. Another procedure is another frozen class with the
same three members, registered in `PROCEDURES` under its name.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np


class Procedure(Protocol):
  """What `calibrate` asks of a procedure.

  Attributes:
    name: how certificates name it; `PROCEDURES` finds it by this name.
  """

  name: str

  def __call__(
    self, p_values: np.ndarray, error_rate: float
  ) -> tuple[int, ...]:
    """Returns the indices of the rejected hypotheses, ascending.

    Args:
      p_values: [J], in testing order; NaN where not tested.
      error_rate: the bound on P(any false rejection), in (0, 1).
    """

  def next_test(self, p_values: np.ndarray, error_rate: float) -> int | None:
    """Returns the index of the p-value needed next, None if none is.

    Args:
      p_values: [J], NaN where not tested yet.
      error_rate: as above.
    """


@dataclasses.dataclass(frozen=True)
class FixedSequence:
  """Rejects in the given order until a hypothesis cannot be rejected.

  Each test spends the whole error rate; what pays for it is that the order was
  fixed before the data were seen and that testing stops at the first failure.
  Angelopoulos et al., Learn then Test (arXiv 2110.01052), "fixed sequence
  testing" from a single start; the procedure of CALM (arXiv 2207.07061).

  >>> fixed_sequence()([0.01, 0.05, 0.06, 0.001], 0.05)
  (0, 1)
  """

  name: ClassVar[str] = 'fixed_sequence'

  def __call__(
    self, p_values: np.ndarray, error_rate: float
  ) -> tuple[int, ...]:
    """Returns 0..k-1, k the first index whose p-value is above error_rate."""
    p_values = check_p_values(p_values, error_rate)
    # NaN, a setting that was not tested, counts as not rejected.
    failures = np.flatnonzero(~(p_values <= error_rate))
    return tuple(range(failures[0] if failures.size else p_values.size))

  def next_test(self, p_values: np.ndarray, error_rate: float) -> int | None:
    """Returns the first untested index if all before it were rejected."""
    rejected = len(self(p_values, error_rate))
    if rejected == len(p_values) or not np.isnan(p_values[rejected]):
      return None
    return rejected


def fixed_sequence() -> FixedSequence:
  """Returns fixed sequence testing from a single start."""
  return FixedSequence()


# By name, for certificates that are read back; a procedure with parameters
# writes them into its name and registers each form it is used in.
PROCEDURES: dict[str, Callable[[], Procedure]] = {
  FixedSequence.name: fixed_sequence,
}


def check_p_values(p_values: np.ndarray, error_rate: float) -> np.ndarray:
  """Returns p-values [J] as float64, NaN allowed.

  Raises:
    ValueError: if one is outside [0, 1], there are none, or the error rate is
      not in (0, 1).
  """
  p_values = np.asarray(p_values, np.float64)
  if p_values.ndim != 1 or not p_values.size:
    raise ValueError(f'p_values must be [J], J >= 1, not {p_values.shape}')
  if not 0 < error_rate < 1:
    raise ValueError(f'error_rate must be in (0, 1), not {error_rate}')
  bad = np.flatnonzero((p_values < 0) | (p_values > 1))
  if bad.size:
    raise ValueError(
      f'p_values must be in [0, 1], but number {bad[0]} is {p_values[bad[0]]}'
    )
  return p_values

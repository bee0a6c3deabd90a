"""Procedures that test many settings and keep the error rate of the family.

A procedure looks at the p-values of J settings, in their testing order, and
rejects some of the hypotheses "this setting's risk is above the tolerance", so
that the probability of even one false rejection is at most the error rate. It
also says which p-value it needs next, so that settings which cannot change the
certificate any more are never decoded: what counts is the last rejected one,
the most aggressive. Another procedure is another frozen class with the same
three members; `PROCEDURES` lists those that certificates know by name.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from calm_jax.calibration import anytime, corrections, inputs


class Procedure(Protocol):
  """What `calibrate` asks of a procedure."""

  @property
  def name(self) -> str:
    """How certificates name it, its parameters included.

    `find_procedure` turns the name of one of calm_jax's back into the
    procedure.
    """
    ...

  def __call__(
    self, p_values: np.ndarray, error_rate: float
  ) -> tuple[int, ...]:
    """Returns the indices of the rejected hypotheses, ascending.

    Args:
      p_values: [J], in testing order; NaN where not tested.
      error_rate: the bound on P(any false rejection), in (0, 1).

    Raises:
      ValueError: for p-values or an error rate outside their range.
    """
    ...

  def next_test(self, p_values: np.ndarray, error_rate: float) -> int | None:
    """Returns the index of the p-value needed next, None if none is.

    When none is, the last rejected index must be that of the full table.

    Args:
      p_values: [J], NaN where not tested yet.
      error_rate: in (0, 1).

    Raises:
      ValueError: for p-values or an error rate outside their range.
    """
    ...


@dataclasses.dataclass(frozen=True)
class FixedSequence:
  """Rejects in the given order until a hypothesis cannot be rejected.

  From a single start each test spends the whole error rate; what pays for it is
  that the order was fixed before the data were seen and that testing stops at
  the first failure. That is the procedure of CALM (arXiv 2207.07061). With k
  starts, k such sequences begin at k settings and each spends error_rate / k,
  until its own first failure; what one of them rejected is rejected. More
  starts help where the first settings may fail although later ones would pass,
  and cost examples everywhere else. Angelopoulos et al., Learn then Test (arXiv
  2110.01052), "fixed sequence testing".

  Attributes:
    starts: the indices at which sequences begin, ascending.
    num_starts: so many equally spaced starts instead: the i-th at
      floor(i J / num_starts), i = 0 .. num_starts - 1.

  >>> fixed_sequence()([0.01, 0.05, 0.06, 0.001], 0.05)
  (0, 1)
  >>> fixed_sequence(starts=(0, 2))([0.01, 0.05, 0.02, 0.02, 0.9], 0.05)
  (0, 2, 3)
  """

  starts: tuple[int, ...] = (0,)
  num_starts: int | None = None

  def __post_init__(self):
    """Brings equal forms to one; raises ValueError for starts that are none."""
    starts = tuple(self.starts)
    if not starts or any(isinstance(s, bool) for s in starts):
      raise ValueError(f'starts must be indices, at least one, not {starts}')
    if any(s != int(s) or s < 0 for s in starts) or any(
      first >= second for first, second in itertools.pairwise(starts)
    ):
      raise ValueError(
        f'starts must be indices from 0 on, each greater than the one before, '
        f'not {starts}'
      )
    object.__setattr__(self, 'starts', tuple(int(s) for s in starts))
    if self.num_starts is None:
      return
    if self.num_starts != int(self.num_starts) or self.num_starts < 1:
      raise ValueError(
        f'num_starts must be a positive number, not {self.num_starts}'
      )
    if self.starts != (0,):
      raise ValueError(
        f'give starts, {starts}, or num_starts, {self.num_starts}, but not both'
      )
    number = int(self.num_starts)
    object.__setattr__(self, 'num_starts', None if number == 1 else number)

  @property
  def name(self) -> str:
    """Such as `fixed_sequence` or `fixed_sequence(starts=0,5,10)`."""
    if self.num_starts is not None:
      return f'fixed_sequence(num_starts={self.num_starts})'
    if self.starts != (0,):
      return f'fixed_sequence(starts={",".join(map(str, self.starts))})'
    return 'fixed_sequence'

  def level(self, num_settings: int, error_rate: float) -> float:
    """Returns what a test spends: error_rate / k."""
    return error_rate / len(self.indices(num_settings))

  def indices(self, num_settings: int) -> tuple[int, ...]:
    """Returns the starts among J settings, ascending.

    Raises:
      ValueError: if there are fewer settings than it takes.
    """
    number = self.num_starts
    if number is not None:
      if number > num_settings:
        raise ValueError(
          f'{number} starts are more than the {num_settings} settings'
        )
      return tuple(i * num_settings // number for i in range(number))
    if self.starts[-1] >= num_settings:
      raise ValueError(
        f'start {self.starts[-1]} is none of the {num_settings} settings, '
        f'which are counted from 0'
      )
    return self.starts

  def __call__(self, p_values: ArrayLike, error_rate: float) -> tuple[int, ...]:
    """Returns, from every start, what comes before its first failure."""
    p_values = inputs.check_p_values(p_values, error_rate)
    level = self.level(p_values.size, error_rate)
    rejected = set()
    for start in self.indices(p_values.size):
      rejected.update(range(start, _first_failure(p_values, start, level)))
    return tuple(sorted(rejected))

  def next_test(self, p_values: ArrayLike, error_rate: float) -> int | None:
    """Returns the next index of the last sequence that still counts.

    The sequence of the last start comes first. If it rejects anything, whatever
    the starts before it reject is less aggressive and need not be known.
    """
    p_values = inputs.check_p_values(p_values, error_rate)
    level = self.level(p_values.size, error_rate)
    for start in reversed(self.indices(p_values.size)):
      end = _first_failure(p_values, start, level)
      if end < p_values.size and np.isnan(p_values[end]):
        return end
      if end > start:
        return None
    return None


def fixed_sequence(
  starts: tuple[int, ...] = (0,), *, num_starts: int | None = None
) -> FixedSequence:
  """Returns fixed sequence testing, from a single start if not told otherwise.

  Args:
    starts: the indices at which sequences begin, ascending.
    num_starts: so many equally spaced starts instead.

  Raises:
    ValueError: for starts that are no ascending indices, or both at once.

  >>> fixed_sequence().name, fixed_sequence(num_starts=3).name
  ('fixed_sequence', 'fixed_sequence(num_starts=3)')
  """
  return FixedSequence(tuple(starts), num_starts)


# By the part of the name before the parameters, for certificates that are read
# back.
PROCEDURES: dict[str, Callable[..., Procedure]] = {
  'fixed_sequence': fixed_sequence,
  'bonferroni': corrections.Bonferroni,
  'holm': corrections.Holm,
  'anytime_sequence': anytime.AnytimeSequence,
}
# How the parameters in their names are read.
_PARAMETERS: dict[str, Callable[[str], Any]] = {
  'starts': lambda text: tuple(map(int, text.split(','))),
  'num_starts': int,
  'block': int,
  'give_up': float,
}


def find_procedure(name: str) -> Procedure:
  """Returns the procedure that has this name, down to its parameters.

  Args:
    name: as certificates hold it, such as 'holm'.

  Raises:
    ValueError: if none of calm_jax's has it.

  >>> find_procedure('fixed_sequence(starts=0,5,10)').starts
  (0, 5, 10)
  """
  match = re.fullmatch(r'(\w+)(?:\((.*)\))?', name)
  procedure = None
  if match and match[1] in PROCEDURES:
    try:
      procedure = PROCEDURES[match[1]](**_parameters(match[2]))
    except (KeyError, TypeError, ValueError):
      pass
  # Its own name, to the letter: nothing else was written by a calibration.
  if procedure is None or procedure.name != name:
    raise ValueError(
      f'procedure {name!r} is none of {sorted(PROCEDURES)} with parameters of '
      'theirs; pass the object it was calibrated with as procedure='
    )
  return procedure


def _parameters(text: str | None) -> dict[str, Any]:
  """Returns what is between the parentheses of a name, as keywords."""
  pairs = [item.split('=', 1) for item in (text or '').split(', ') if item]
  return {key: _PARAMETERS[key](value) for key, value in pairs}


def needed_tests(
  procedure: Procedure, p_values: ArrayLike, error_rate: float
) -> np.ndarray:
  """Returns which p-values [J] a procedure asks for, one after the other.

  Args:
    procedure: the procedure.
    p_values: [J], NaN where not tested. Where the procedure asks for one of
      these, it can go no further: that is the last index marked.
    error_rate: in (0, 1).

  Returns:
    bool [J].

  Raises:
    ValueError: for p-values or an error rate outside their range, or if the
      procedure asks for one of them twice.

  >>> needed_tests(fixed_sequence(), [0.01, 0.06, 0.001], 0.05)
  array([ True,  True, False])
  """
  p_values = inputs.check_p_values(p_values, error_rate)
  seen = np.full_like(p_values, np.nan)
  needed = np.zeros(p_values.size, bool)
  while (index := procedure.next_test(seen, error_rate)) is not None:
    if needed[index]:
      raise ValueError(f'{procedure} asks for test {index} a second time')
    needed[index] = True
    if np.isnan(p_values[index]):
      break
    seen[index] = p_values[index]
  return needed


def _first_failure(p_values: np.ndarray, start: int, level: float) -> int:
  """Returns the first index from `start` on that is not rejected, or J."""
  # NaN, a setting that was not tested, counts as not rejected.
  failures = np.flatnonzero(~(p_values[start:] <= level))
  return int(start + failures[0]) if failures.size else p_values.size

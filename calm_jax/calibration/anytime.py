"""Fixed sequence testing that looks at rows in blocks, and stops early.

A table of losses need not be full before it is tested. Betting bets on one loss
after the other, and what it has won may be looked at after any of them: where
outputs are expensive, decode a block of rows, look, and decode the next one
only if that can still tell anything.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from calm_jax import checks
from calm_jax.calibration import inputs

# What a test has come to.
REJECTED, OPEN, GIVEN_UP = 1, 0, -1


@dataclasses.dataclass(frozen=True)
class AnytimeSequence:
  """Tests settings in the given order, each on no more rows than it takes.

  The wealth of `Betting` after i losses of a setting, W_i, is a nonnegative
  supermartingale from 1 where the setting's risk is above the tolerance: an
  e-process. By Ville's inequality it ever reaches 1 / error_rate with
  probability at most error_rate, so a setting is rejected as soon as it does,
  wherever one stops and for whatever reason. From there on the next setting is
  tested, on the same rows from the first one on; at the first one that is not
  rejected all ends. Only the first setting in the order whose risk is above the
  tolerance can be the first wrong rejection, and it is one with probability at
  most error_rate, whatever the rows told of others: its bets know nothing but
  its own losses so far. Zecchin, Park and Simeone, "Adaptive Learn-then-Test"
  (aLTT, arXiv 2409.15844), with e-processes by betting (arXiv 2010.09686);
  fixed sequences are Learn then Test's (arXiv 2110.01052).

  It rejects what `fixed_sequence` does with the same bets on all rows, but for
  settings that it gives up although they would have recovered. Rows are taken
  by `next_block` and `calibrate_in_blocks`; `calibrate`, which has all losses,
  takes it for a fixed sequence.

  Attributes:
    block: how many rows are looked at, and decoded, at a time. Multiples of the
      batch size waste nothing.
    give_up: a setting is given up once a player would have so little left of
      1; in [0, 1), 0 for never. It is a rule about when to stop, so that any
      value is valid.

  >>> AnytimeSequence(block=32).name
  'anytime_sequence(block=32, give_up=0.1)'
  >>> AnytimeSequence()([0.01, 0.05, 0.06, 0.001], 0.05)
  (0, 1)
  """

  block: int = 64
  give_up: float = 0.1

  def __post_init__(self):
    """Raises ValueError for a block or a share that is none."""
    checks.check_whole(self.block, 'block', low=1)
    is_number = isinstance(self.give_up, (int, float))
    if (
      isinstance(self.give_up, bool)
      or not is_number
      or not (0 <= self.give_up < 1)
    ):
      raise ValueError(
        f'give_up must be in [0, 1), not {self.give_up!r}: what is left of a '
        'wealth of 1 where a setting is given up; 0 never gives up'
      )

  @property
  def name(self) -> str:
    """How certificates name it."""
    give_up = f'{self.give_up!r}'
    return f'anytime_sequence(block={self.block}, give_up={give_up})'

  def level(self, num_settings: int, error_rate: float) -> float:
    """Returns what a test spends: all of the error rate."""
    del num_settings
    return error_rate

  def __call__(self, p_values: ArrayLike, error_rate: float) -> tuple[int, ...]:
    """Returns the indices before the first that is not rejected."""
    return tuple(range(self._end(p_values, error_rate)))

  def next_test(self, p_values: ArrayLike, error_rate: float) -> int | None:
    """Returns the first index that is not tested, if all before it pass."""
    tests = np.asarray(p_values, np.float64)
    end = self._end(tests, error_rate)
    return end if end < tests.size and np.isnan(tests[end]) else None

  def stops(
    self, paths: np.ndarray, error_rate: float
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns where tests end, and how.

    Args:
      paths: [M, m], ln of the wealth after every loss (`Betting.path`); or
        [K, M, m] of K losses that are bounded together. All must reach
        1 / error_rate, and one of those that have not is enough to give up.
      error_rate: in (0, 1).

    Returns:
      int [M], the rows looked at: the end of the first block that decides, or m
      where none does; and int [M], REJECTED, OPEN or GIVEN_UP.

    >>> paths = np.log([[2.0, 30.0, 1.0, 1.0], [0.5, 0.05, 30.0, 30.0]])
    >>> AnytimeSequence(block=1).stops(paths, 0.05)
    (array([2, 2]), array([ 1, -1]))
    """
    inputs.check_error_rate(error_rate)
    paths = paths if paths.ndim == 3 else paths[np.newaxis]
    number = paths.shape[-1]
    ends = np.append(np.arange(self.block, number, self.block), number) - 1
    # As p-values are compared with the error rate.
    p_values = np.exp(-np.maximum.accumulate(paths, axis=-1)[..., ends])
    reached = p_values <= error_rate
    with np.errstate(divide='ignore'):
      low = paths[..., ends] <= np.log(self.give_up)  # ln 0 is below everything
    rejected = reached.all(axis=0)
    given_up = (~reached & low).any(axis=0)
    over = rejected | given_up
    over[:, -1] = True
    first = np.argmax(over, axis=1)
    rows = np.arange(len(first))
    verdicts = np.where(rejected, REJECTED, np.where(given_up, GIVEN_UP, OPEN))
    return ends[first] + 1, verdicts[rows, first]

  def _end(self, tests: ArrayLike, error_rate: float) -> int:
    tests = inputs.check_p_values(tests, error_rate)
    return int(np.argmin(np.append(tests <= error_rate, False)))

"""What a tuning promises, and what it may take."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import calibration, checks, decoding, interfaces
from calm_jax.evaluation import used_rows
from calm_jax.evaluation.calibration_plan import CalibrationPlan
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.promises import Promise

# What the clock measures if nobody says.
_FEWEST_BATCHES, _FEWEST_ROWS = 2, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningPlan:
  """What is promised of whatever is chosen, fixed before any loss is seen.

  Attributes:
    tolerance: as for `CalibrationPlan`.
    error_rate: how often a promise may be broken, in (0, 1). All of it goes
      into the test, however many candidates there are.
    loss: as for `CalibrationPlan`.
    metric: as for `CalibrationPlan`.
    promises: as for `CalibrationPlan`.
    p_value: as for `CalibrationPlan`.
    spent: as for `CalibrationPlan`.
    batch_size: rows that the clock decodes together: those that will be served
      together. Losses do not depend on it.
    depth_loops: names of `decoding.DEPTH_LOOPS`. Each candidate, and the full
      model, is measured in all of them, and has the time of its fastest; the
      loop of this backend alone if None. Outputs do not depend on it.
    timed_batches: batches that the clock measures, of the rows that screen;
      two if None, or as many as eight rows take.
    repeats: how often it measures each.
    minutes: the time that all of it may take; None for no limit. Candidates
      that it does not last for are left out, and that is said.
    seed: of the split into rows that screen and rows that test.
    screening_share: of the rows that screen, in (0, 1).
    least_gain: how many times as fast as what loses nothing a candidate must be
      to be worth a test, at least 1. The clock says no more of who is nearly as
      fast, and the first one that fails ends the tests.
    compared: the policy of the space that the paper's CALM is shown for; None
      for the first one that is not lossless.
  """

  tolerance: float = 0.1
  error_rate: float = 0.05
  loss: str | ConsistencyLoss = 'textual'
  metric: str | Callable | None = None
  promises: Sequence[Promise | tuple] | None = None
  p_value: Any = None
  spent: str | float = used_rows.TOLD
  batch_size: int = 1
  depth_loops: Sequence[str] | None = None
  timed_batches: int | None = None
  repeats: int = 3
  minutes: float | None = None
  seed: int = 0
  screening_share: float = 0.5
  least_gain: float = 1.05
  compared: str | None = None

  def __post_init__(self):
    """Raises ValueError for numbers out of range and losses that are none."""
    for name, low in (
      ('batch_size', 1),
      ('repeats', 1),
      ('seed', 0),
    ):
      checks.check_whole(getattr(self, name), name, low=low)
    checks.check_whole(self.num_timed, 'timed_batches', low=1)
    self._check_depth_loops()
    if self.minutes is not None and not 0 < self.minutes < math.inf:
      raise ValueError(
        f'minutes is {self.minutes}; give more than 0, or None for no limit'
      )
    if not 1 <= self.least_gain < math.inf:
      raise ValueError(
        f'least_gain is {self.least_gain}; give 1 for whatever is faster at '
        'all, or 1.05'
      )
    calibration.split_rows(2, share=self.screening_share)
    calibration.check_error_rate(self.error_rate)
    # One that is out of range is refused here, and not after an hour.
    _ = self.claims

  def _check_depth_loops(self) -> None:
    names = self.depth_loops
    if names is None:
      return
    if isinstance(names, str) or not names:
      raise ValueError(
        f'depth_loops is {names!r}; give some of '
        f'{tuple(decoding.DEPTH_LOOPS)}, or None'
      )
    decoding.check_depth_loops(names)
    for name in names:
      if self.batch_size == 1 and name in decoding.FOR_BATCHES:
        raise ValueError(
          f'depth loop {name!r} is for batches, and batch_size is 1'
        )

  def loops(self, own: interfaces.DepthLoop) -> dict[str, interfaces.DepthLoop]:
    """Returns the depth loops to measure by name; `own` if none are named."""
    if self.depth_loops is None:
      return {decoding.name_of_depth_loop(own): own}
    return {name: decoding.DEPTH_LOOPS[name] for name in self.depth_loops}

  @property
  def num_timed(self) -> int:
    """How many batches the clock measures."""
    if self.timed_batches is not None:
      return self.timed_batches
    return max(_FEWEST_BATCHES, math.ceil(_FEWEST_ROWS / self.batch_size))

  @property
  def claims(self) -> CalibrationPlan:
    """What is promised, as a calibration of one setting would have it."""
    return CalibrationPlan(
      settings=({},),
      tolerance=self.tolerance,
      error_rate=self.error_rate,
      loss=self.loss,
      metric=self.metric,
      promises=self.promises,
      p_value=self.p_value,
      spent=self.spent,
    )

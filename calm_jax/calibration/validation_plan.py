"""How violations of the guarantee are counted: tolerances, draws, tests."""

import dataclasses
from collections.abc import Sequence

from calm_jax.calibration import choices, multiple_testing
from calm_jax.calibration.named_p_values import P_VALUES, default_p_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationPlan:
  """How violations are counted on loss tables.

  Attributes:
    tolerances: in the units of the losses, strictly inside their range; each
      once, at least one.
    error_rate: how often a certificate may be wrong, in (0, 1).
    p_values: names in `calibration.P_VALUES`; None for what `calibrate` takes
      for losses of this range if not told otherwise.
    procedure: the name of a procedure, with its parameters, such as
      'fixed_sequence(num_starts=3)'.
    num_draws: calibrations per count, 1 or more; 1000 or more to be reported.
    draw_size: rows of a draw; those of the table if None.
    num_splits: random 80/20 splits, 1 or more.
    curve_points: tolerances of the curves, which are drawn of the first
      p-value; 0 for no curves.
    curve_draws: calibrations per tolerance of the curves.
    seed: of draws and splits.
    promises: sets of losses that are promised together, counted instead of
      `tolerances`, without splits and curves: each a sequence of (loss,
      tolerance) or (loss, tolerance, metric). They are of the losses that the
      tables hold.
  """

  tolerances: Sequence[float] = (0.1,)
  error_rate: float = 0.05
  p_values: Sequence[str] | None = None
  procedure: str = 'fixed_sequence'
  num_draws: int = 1000
  draw_size: int | None = None
  num_splits: int = 50
  curve_points: int = 25
  curve_draws: int = 200
  seed: int = 0
  promises: Sequence[Sequence[tuple]] = ()

  def __post_init__(self):
    """Raises ValueError for no tolerances and names that are none."""
    if any(not promised for promised in self.promises):
      raise ValueError(
        'there are no promises in one of the sets; give at least one of each, '
        'such as textual=0.05'
      )
    object.__setattr__(
      self, 'tolerances', tuple(dict.fromkeys(self.tolerances))
    )
    if not self.tolerances:
      raise ValueError('tolerances are empty; give at least one')
    self.statistics((0.0, 1.0))

  def statistics(
    self, loss_range: tuple[float, float]
  ) -> tuple[choices.Statistics, ...]:
    """Returns what losses of a range are tested with, one per p-value."""
    names = self.p_values
    if names is None:
      names = (default_p_value(loss_range),)
    unknown = [name for name in names if name not in P_VALUES]
    if unknown or not names:
      raise ValueError(
        f'p-values are {list(names)}; use some of {sorted(P_VALUES)}'
      )
    return tuple(
      choices.Statistics(
        error_rate=self.error_rate,
        p_value=P_VALUES[name],
        procedure=multiple_testing.find_procedure(self.procedure),
      )
      for name in dict.fromkeys(names)
    )

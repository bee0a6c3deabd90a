"""A validation: the guarantee, counted on stored loss tables."""

import dataclasses
from typing import Any

from calm_jax.records.evaluations import CertificateSummary, RunContext
from calm_jax.records.json_files import FORMAT_VERSION
from calm_jax.records.promises import PromisedLoss
from calm_jax.records.setting_speeds import SettingSpeeds


@dataclasses.dataclass(frozen=True)
class ViolationCount:
  """Calibrations on draws from a loss table that is taken for the population.

  Attributes:
    tolerance: what the risk must not exceed, in the units of the losses.
    p_value: the name of the p-value.
    near_setting: the setting of the grid just below whose risk the tolerance
      was put, None for a tolerance that was asked for.
    num_draws: draws with replacement, a calibration each.
    draw_size: n, the rows of a draw.
    num_violations: calibrations that chose a setting whose population risk is
      above the tolerance.
    rate_low: lower end of the Clopper-Pearson interval (95 %) of their rate.
    rate_high: its upper end.
    num_certified: calibrations that certified anything.
    chosen: J counts, how often each setting was certified.
    mean_risk: mean population risk of the choices, 0 (the full model) where
      nothing was certified.
    mean_exit_layer: mean layers per token of the choices, L where nothing was
      certified; NaN if L is not known and needed.
    promises: where several losses were bounded together; a violation breaks any
      of them, tolerance and mean_risk are those of the first. () for one.
  """

  tolerance: float
  p_value: str
  near_setting: Any
  num_draws: int
  draw_size: int
  num_violations: int
  rate_low: float
  rate_high: float
  num_certified: int
  chosen: tuple[int, ...]
  mean_risk: float
  mean_exit_layer: float
  promises: tuple[PromisedLoss, ...] = ()

  @property
  def rate(self) -> float:
    """The share of the calibrations that broke the tolerance."""
    return self.num_violations / self.num_draws

  @property
  def share_certified(self) -> float:
    """The share of the calibrations that certified anything."""
    return self.num_certified / self.num_draws


@dataclasses.dataclass(frozen=True)
class SplitStudy:
  """Random splits of a loss table, calibrated on one part, seen on the other.

  Attributes:
    tolerance: what the risk must not exceed, in the units of the losses.
    p_value: the name of the p-value.
    calibration_size: rows of the part that is calibrated on.
    test_size: rows of the rest.
    test_risks: per split, the mean loss of the rest at the chosen setting, 0
      where nothing was certified.
    num_above: splits whose test risk is above the tolerance. This counts a
      noisy estimate and may be more than the error rate allows for risks.
    num_certified: splits in which anything was certified.
    mean_exit_layer: as in `ViolationCount`.
  """

  tolerance: float
  p_value: str
  calibration_size: int
  test_size: int
  test_risks: tuple[float, ...]
  num_above: int
  num_certified: int
  mean_exit_layer: float

  @property
  def num_splits(self) -> int:
    """How many splits there were."""
    return len(self.test_risks)

  @property
  def share_above(self) -> float:
    """The share of the splits whose test risk is above the tolerance."""
    return self.num_above / self.num_splits


@dataclasses.dataclass(frozen=True)
class ToleranceCurve:
  """Risk and depth of what is chosen, against K tolerances.

  Attributes:
    p_value: the name of the p-value.
    num_draws: draws with replacement per tolerance.
    num_splits: random splits per tolerance.
    tolerances: K of them, ascending.
    mean_risks: K means over the draws of the chosen setting's population risk.
    low_risks: K quantiles of it, at 5 %.
    high_risks: K quantiles of it, at 95 %.
    mean_exit_layers: K means of the chosen setting's layers per token.
    low_exit_layers: K quantiles of them, at 5 %.
    high_exit_layers: K quantiles of them, at 95 %.
    split_risks: K means of the test risk over the splits.
    mean_speed_ups: K means of the chosen setting's speed-up, 1 where nothing
      was certified; None if the settings were not timed.
  """

  p_value: str
  num_draws: int
  num_splits: int
  tolerances: tuple[float, ...]
  mean_risks: tuple[float, ...]
  low_risks: tuple[float, ...]
  high_risks: tuple[float, ...]
  mean_exit_layers: tuple[float, ...]
  low_exit_layers: tuple[float, ...]
  high_exit_layers: tuple[float, ...]
  split_risks: tuple[float, ...]
  mean_speed_ups: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ValidatedTable:
  """The guarantee, counted on one loss table.

  `counts`, `splits` and `certificates` are parallel: one entry per p-value and
  tolerance that was asked for. Where several losses are bounded together there
  are no splits and no curve.

  Attributes:
    name: what tells it from other tables of the comparison, by default its
      confidence measure.
    path: where the table was.
    checksum: of losses, settings and inputs: which table it was.
    task: the task, or ''.
    split: the split of the task, or ''.
    measure: the confidence measure, or ''.
    loss: the name of the loss; of several those of all of them.
    metric: the text metric of the loss, or ''.
    loss_range: the smallest and the largest value a loss can have.
    num_examples: N, the rows.
    num_layers: L, the decoder layers, None if the table does not say.
    settings: J settings, from conservative to aggressive.
    risks: J column means: the risks of the population.
    mean_exit_layers: J, layers per token.
    counts: violations at the tolerances asked for.
    near_counts: violations just below the risk of each setting, where they are
      likeliest.
    splits: the paper's splits.
    certificates: what the whole table certifies.
    curve: risk and depth against tolerance, None if not asked for.
    speeds: wall clock of every setting, None if they were not timed.
    fingerprint: what the table itself says of the model, policy and decoder.
  """

  name: str
  path: str
  checksum: str
  task: str
  split: str
  measure: str
  loss: str
  metric: str
  loss_range: tuple[float, ...]
  num_examples: int
  num_layers: int | None
  settings: tuple[Any, ...]
  risks: tuple[float, ...]
  mean_exit_layers: tuple[float, ...]
  counts: tuple[ViolationCount, ...]
  near_counts: tuple[ViolationCount, ...]
  splits: tuple[SplitStudy, ...]
  certificates: tuple[CertificateSummary, ...]
  curve: ToleranceCurve | None = None
  speeds: SettingSpeeds | None = None
  fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Validation:
  """The guarantee, counted: one loss table or several of the same loss.

  Attributes:
    error_rate: how often a certificate may be wrong, the same everywhere.
    procedure: the name of the multiple testing procedure.
    seed: of draws and splits.
    tables: one entry per loss table, such as one per confidence measure.
    context: how all this was obtained.
    format_version: of this schema.
  """

  error_rate: float
  procedure: str
  seed: int
  tables: tuple[ValidatedTable, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

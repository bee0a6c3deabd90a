"""What a run is asked to do, and how it ended."""

import dataclasses

from calm_jax import checks
from calm_jax.array_types import Params


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a run ended.

  Attributes:
    params: the parameters after the last step (not those of the best one).
    step: steps taken.
    stopped_because: 'num_steps', 'patience', 'max_minutes' or 'end of data'.
    best_step: the step of the best evaluation, or None without evaluators.
    best_value: `best_metric` there.
    seconds: wall-clock time, earlier starts of the run included.
  """

  params: Params
  step: int
  stopped_because: str
  best_step: int | None
  best_value: float | None
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """When a run does what, and when it ends.

  Attributes:
    num_steps: steps of the whole run, counted from its first start.
    log_every: steps between log lines.
    eval_every: steps between evaluations; there is one at the end as well.
    checkpoint_every: steps between checkpoints; also one at the end.
    max_to_keep: checkpoints kept besides the best one.
    patience: stop after so many evaluations without a new best; None for never.
    max_minutes: stop (and save) after this time, earlier starts of the run
      included; None for never.
    best_metric: the metric that picks the best checkpoint.
    best_mode: 'min' or 'max'.
  """

  num_steps: int
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 500
  max_to_keep: int = 2
  patience: int | None = None
  max_minutes: float | None = None
  best_metric: str = 'validation_loss'
  best_mode: str = 'min'

  def __post_init__(self):
    for name in 'num_steps log_every eval_every checkpoint_every'.split():
      checks.check_whole(getattr(self, name), name, low=1)
    checks.check_whole(self.max_to_keep, 'max_to_keep', low=1)
    if self.patience is not None:
      checks.check_whole(self.patience, 'patience', low=1)
    if self.max_minutes is not None and not self.max_minutes > 0:
      raise ValueError(f'max_minutes must be > 0, got {self.max_minutes!r}')
    if self.best_mode not in ('min', 'max'):
      raise ValueError(
        f"best_mode must be 'min' or 'max', got {self.best_mode!r}"
      )

  def is_better(self, value: float, best: float | None) -> bool:
    """Whether a metric beats the best one so far; NaN never does."""
    sign = 1 if self.best_mode == 'min' else -1
    return value == value and (best is None or sign * value < sign * best)

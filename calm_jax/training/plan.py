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


@dataclasses.dataclass(frozen=True)
class Plan:
  """The arguments of `train` that say when to do what; see there."""

  num_steps: int
  log_every: int
  eval_every: int
  checkpoint_every: int
  max_to_keep: int
  patience: int | None
  max_minutes: float | None
  best_metric: str
  best_mode: str

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

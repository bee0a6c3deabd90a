"""What a run knows besides the training state: its clock and its best."""

import dataclasses

from calm_jax.training.plan import Plan


@dataclasses.dataclass(frozen=True)
class Remembered:
  """What a run knows besides the training state; saved with checkpoints.

  Attributes:
    seconds: wall-clock time so far.
    best_step: step of the best evaluation.
    best_value: the metric there.
    stale_evaluations: evaluations since then.
    evaluated_step: step of the last evaluation.
  """

  seconds: float = 0.0
  best_step: int | None = None
  best_value: float | None = None
  stale_evaluations: int = 0
  evaluated_step: int | None = None

  def judged(self, value: float, step: int, plan: Plan) -> 'Remembered':
    """Returns what is known after an evaluation.

    Args:
      value: `plan.best_metric` of it.
      step: where it took place.
      plan: says which values are better.
    """
    if plan.is_better(value, self.best_value):
      return dataclasses.replace(
        self,
        best_step=step,
        best_value=value,
        stale_evaluations=0,
        evaluated_step=step,
      )
    return dataclasses.replace(
      self,
      stale_evaluations=self.stale_evaluations + 1,
      evaluated_step=step,
    )

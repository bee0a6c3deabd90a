"""What an evaluation compares and times."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import calibration, checks
from calm_jax.evaluation import corpus_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
  """Metrics, points of the figure, and what is put on the clock.

  Attributes:
    metrics: names in corpus_metrics.CORPUS_METRICS; the first is drawn.
    sweep_thresholds: further thresholds for the figure, in [0, 1] and strictly
      decreasing, which then also shows all static exits; () for neither.
    timing_batch_sizes: batch sizes to time; () for none.
    timing_batches: different batches timed at each size.
    timing_repeats: how often each is timed.
    loss_metric: the metric that was calibrated with, where that is a function
      of one's own: a certificate names it, and no file makes us import code;
      or several, where a certificate promises losses by several.
  """

  metrics: Sequence[str] = ('bleu', 'rouge_l')
  sweep_thresholds: Sequence[float] = (0.9, 0.7, 0.5, 0.3, 0.1)
  timing_batch_sizes: Sequence[int] = (1, 8)
  timing_batches: int = 8
  timing_repeats: int = 3
  loss_metric: str | Callable[..., float] | Sequence[Any] | None = None

  def __post_init__(self):
    """Raises ValueError for unknown metrics and numbers that are none."""
    known = corpus_metrics.CORPUS_METRICS
    if not self.metrics or any(name not in known for name in self.metrics):
      raise ValueError(
        f'metrics are {tuple(self.metrics)}; use some of {sorted(known)}'
      )
    for name in ('timing_batches', 'timing_repeats'):
      checks.check_whole(getattr(self, name), name, low=1)
    if self.sweep_thresholds:
      calibration.check_settings(self.sweep_thresholds)

"""What promised losses come out as on inputs that were not calibrated on."""

import math
from collections.abc import Callable

import numpy as np

from calm_jax import records
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import losses, text_metrics
from calm_jax.evaluation.comparison_plan import ComparisonPlan
from calm_jax.evaluation.decoded_dataset import DecodedDataset


def metric_named(plan: ComparisonPlan, name: str) -> text_metrics.Metric:
  """Returns the metric of a certificate.

  Only the user names modules: what a file names is not imported.

  Args:
    plan: names the user's own.
    name: as the certificate has it.

  Raises:
    ValueError: if it is a function that the plan does not name.
  """
  if name in text_metrics.METRICS:
    return text_metrics.METRICS[name]
  own = plan.loss_metric
  for given in own if isinstance(own, (tuple, list)) else (own,):
    metric = None if given is None else text_metrics.get_metric(given)
    if metric is not None and text_metrics.metric_name(metric) == name:
      return metric
  raise ValueError(
    f'the certificate was made with the metric {name!r}, which is code, and no '
    "file's word has code imported. If it is yours, name it: "
    f'--gin.LOSS_METRIC={name}'
  )


def promise_outcomes(
  certificate: Certificate,
  early: DecodedDataset,
  full: DecodedDataset,
  *,
  metric_of: Callable[[str], text_metrics.Metric],
) -> tuple[records.PromiseOutcome, ...]:
  """Measures every one of several promised losses.

  Args:
    certificate: the certificate.
    early: the decode at its setting.
    full: the full model's decode of the same inputs.
    metric_of: the name of a metric -> the metric.

  Returns:
    One per promise, NaN for a loss whose references are missing; () where a
    single loss was promised, or nothing was certified.
  """
  if not certificate.certified:
    return ()
  outcomes = []
  for bound in certificate.promises:
    loss = losses.get_loss(bound.loss, metric_of(bound.metric))
    mean = error = math.nan
    if all(full.references) or not loss.needs_references:
      mean, error = mean_and_error(loss(early, full))
    outcomes.append(
      records.PromiseOutcome(
        loss=bound.loss,
        metric=bound.metric,
        tolerance=bound.tolerance,
        mean=mean,
        standard_error=error,
      )
    )
  return tuple(outcomes)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
  """Returns the mean over inputs and its standard error (NaN for one).

  >>> mean_and_error(np.array([0.0, 1.0, 0.0, 1.0]))[0]
  0.5
  """
  values = np.asarray(values, dtype=np.float64)
  if values.size < 2:
    return float(values.mean()), math.nan
  return float(values.mean()), float(values.std(ddof=1) / values.size**0.5)

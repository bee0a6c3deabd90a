"""What a calibration promises: of one loss, or of several at once."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import calibration
from calm_jax.calibration import bounds
from calm_jax.evaluation import seen_text
from calm_jax.evaluation.losses import ConsistencyLoss, get_loss

_FORM = "(('textual', 0.05), ('signed', 0.02))"


@dataclasses.dataclass(frozen=True)
class Promise:
  """One loss and what its mean is at most.

  Attributes:
    loss: 'textual', 'risk', 'signed', or a `ConsistencyLoss`.
    tolerance: what the expected loss may be at most, in the units of the loss
      and strictly inside its range.
    metric: the text metric behind a loss that is named, as `CalibrationPlan`
      has it; that of the plan if None.

  >>> Promise('signed', 0.02).bound().loss_range
  (-1.0, 1.0)
  """

  loss: str | ConsistencyLoss
  tolerance: float
  metric: str | Callable | None = None

  def __post_init__(self):
    """Raises ValueError for an unknown loss and a tolerance out of range."""
    self.bound()

  def at_metric(self, metric: str | Callable | None) -> 'Promise':
    """Returns the promise measured by a metric, if its own was left open."""
    if self.metric is not None or isinstance(self.loss, ConsistencyLoss):
      return self
    return dataclasses.replace(self, metric=metric)

  def measured(self) -> ConsistencyLoss:
    """Returns the loss; by the first of the defaults if its metric is open."""
    if isinstance(self.loss, ConsistencyLoss):
      return self.loss
    metric = seen_text.DEFAULTS[0] if self.metric is None else self.metric
    return get_loss(self.loss, metric)

  def bound(self) -> calibration.Bound:
    """Returns what is tested of it."""
    loss = self.measured()
    # A metric of one's own may have no name until it is asked for.
    named = self.metric is not None or isinstance(self.loss, ConsistencyLoss)
    return calibration.Bound(
      loss=loss.name,
      metric=_name_of(loss) if named else '',
      tolerance=self.tolerance,
      loss_range=loss.loss_range,
    )


def as_promises(
  given: Sequence[Any], metric: str | Callable | None
) -> tuple[Promise, ...]:
  """Returns promises, each once, in the order in which certificates have them.

  Args:
    given: `Promise`s, or (loss, tolerance) or (loss, tolerance, metric).
    metric: of those that name none; None leaves it open.

  Raises:
    TypeError: if one is none of these.
    ValueError: if there are none, one loss is given two tolerances, a loss or
      metric is unknown, or a tolerance is out of range.
  """
  if isinstance(given, (str, dict)) or not isinstance(given, Sequence):
    raise TypeError(f'promises are {given!r}; write them as in {_FORM}')
  promises = [_as_promise(item).at_metric(metric) for item in given]
  places = bounds.in_order([promise.bound() for promise in promises])
  return tuple(promises[place] for place in places)


def _as_promise(given: Any) -> Promise:
  if isinstance(given, Promise):
    return given
  if isinstance(given, (tuple, list)) and len(given) in (2, 3):
    loss, tolerance, *metric = given
    is_number = isinstance(tolerance, (int, float))
    if is_number and not isinstance(tolerance, bool):
      return Promise(loss, tolerance, *metric)
  raise TypeError(
    f'{given!r} is no promise; give a loss and what its mean is at most, and '
    f'its metric if it has one of its own, as in {_FORM}'
  )


def _name_of(loss: ConsistencyLoss) -> str:
  """Returns the name of a metric, '' for one that can have none."""
  try:
    return loss.metric_name
  except ValueError:
    return ''

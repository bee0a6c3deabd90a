"""What is certified of an early exit: how close, how surely, by which loss."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import calibration
from calm_jax.evaluation import seen_text, used_rows
from calm_jax.evaluation.losses import ConsistencyLoss, get_loss

DEFAULT_THRESHOLDS = tuple(i / 20 for i in range(19, -1, -1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
  """What a calibration tests, fixed before any loss is seen.

  Attributes:
    settings: from conservative to aggressive: thresholds in [0, 1], strictly
      decreasing, or {path of a field of the policy: value}.
    tolerance: what the expected loss may be at most (CALM's delta), in the
      units of the losses.
    error_rate: how often a certificate may be wrong (CALM's epsilon), in
      (0, 1).
    loss: 'textual' (distance to the full model's output), 'risk' (quality lost
      against the references, clipped at 0 per input), 'signed' (the same
      without clipping, in [-1, 1]), or a `ConsistencyLoss`.
    metric: the text metric behind a loss that is named: a name in
      text_metrics.METRICS, a function (prediction, references) -> [0, 1], or
      its 'module:name'; None for the first of seen_text.DEFAULTS that sees the
      texts, rouge_l for those in Latin script.
    p_value: one of `calibration`'s p-values; hoeffding_bentkus if None, betting
      for 'signed', whose range the others make little of.
    procedure: `calibration.fixed_sequence()` if None.
    spent: what becomes of it that other calibrations have looked at the same
      rows: it is 'told', or 'counted', their error rates taken off this one's;
      a number is taken off instead, where they are noted elsewhere. Counting
      bounds all of them together only if none was chosen by what came out of
      another; rows not used so far always do.
  """

  settings: Sequence[float | dict[str, Any]] = DEFAULT_THRESHOLDS
  tolerance: float = 0.1
  error_rate: float = 0.05
  loss: str | ConsistencyLoss = 'textual'
  metric: str | Callable | None = None
  p_value: Any = None
  procedure: Any = None
  spent: str | float = used_rows.TOLD

  def __post_init__(self):
    """Raises ValueError for settings out of order and losses that are none."""
    settings = calibration.check_settings(self.settings)
    object.__setattr__(self, 'settings', settings)
    used_rows.check_spent(self.spent, self.error_rate)
    for name in ('p_value', 'procedure'):
      given = getattr(self, name)
      if isinstance(given, str):
        raise ValueError(
          f'{name} is the text {given!r}; give the object of that name, such '
          'as calibration.betting or calibration.fixed_sequence() (in gin '
          '@calibration.betting, @calibration.fixed_sequence())'
        )
    if isinstance(self.loss, ConsistencyLoss):
      return
    # Looked up even where the metric is left open: an unknown loss shows here.
    metric = seen_text.DEFAULTS[0] if self.metric is None else self.metric
    loss = get_loss(self.loss, metric)
    if self.metric is not None:
      object.__setattr__(self, 'loss', loss)

  def for_texts(self, texts: Sequence[str], *, what: str) -> 'CalibrationPlan':
    """Returns the plan with a loss whose metric sees the texts.

    A metric that was left open is chosen by the alphabet of the texts, and by
    nothing else, so that it may be theirs: where texts are mixed, name it.

    Args:
      texts: what losses are measured on.
      what: how errors call them.

    Raises:
      ValueError: if the metric ignores much of them, naming one that does not.
    """
    loss = self.loss
    if not isinstance(loss, ConsistencyLoss):
      loss = get_loss(loss, seen_text.default_metric(texts))
    loss.check_sees(texts, what=what)
    return dataclasses.replace(self, loss=loss)

  def statistics(self) -> dict[str, Any]:
    """Returns the keywords of `calibration.calibrate` and `next_column`."""
    loss = self.loss
    if not isinstance(loss, ConsistencyLoss):
      raise ValueError('the metric is left open: ask for_texts first')
    loss_range = loss.loss_range
    p_value = self.p_value
    if p_value is None:
      p_value = calibration.P_VALUES[calibration.default_p_value(loss_range)]
    return {
      'tolerance': self.tolerance,
      'error_rate': self.error_rate,
      'p_value': p_value,
      'procedure': self.procedure or calibration.fixed_sequence(),
      'loss_range': loss_range,
    }

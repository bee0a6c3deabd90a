"""What is certified of an early exit: how close, how surely, by which loss."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import calibration, checks, decoding, exits
from calm_jax.evaluation import seen_text, used_rows
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.promises import Promise, as_promises

_LOSS = 'textual'
_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
  """What a calibration tests, fixed before any loss is seen.

  Attributes:
    settings: from conservative to aggressive: thresholds in [0, 1], strictly
      decreasing, or {path of a field of the policy: value}; None for the
      thresholds that suit the policy's measure (`exits.usual_thresholds`).
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
    p_value: one of `calibration`'s p-values; betting if None. That of the paper
      is `calibration.hoeffding_bentkus`.
    procedure: `calibration.fixed_sequence()` if None. With
      `calibration.AnytimeSequence()` rows are decoded by blocks, and no more
      than it takes.
    spent: what becomes of it that other calibrations have looked at the same
      rows: it is 'told', or 'counted', their error rates taken off this one's;
      a number is taken off instead, where they are noted elsewhere. Counting
      bounds all of them together only if none was chosen by what came out of
      another; rows not used so far always do.
    promises: several losses to bound together, instead of `loss` and
      `tolerance`: `Promise`s, or (loss, tolerance) or (loss, tolerance,
      metric), in any order. One is the same as `loss` and `tolerance`.
  """

  settings: Sequence[float | dict[str, Any]] | None = None
  tolerance: float = _TOLERANCE
  error_rate: float = 0.05
  loss: str | ConsistencyLoss = _LOSS
  metric: str | Callable | None = None
  p_value: Any = None
  procedure: Any = None
  spent: str | float = used_rows.TOLD
  promises: Sequence[Promise | tuple] | None = None

  def __post_init__(self):
    """Raises ValueError for settings out of order and losses that are none."""
    if self.settings is not None:
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
    checks.check_no_class(self.procedure, 'procedure')
    if self.promises is None:
      self._put_alone(Promise(self.loss, self.tolerance, self.metric))
      return
    if self.loss != _LOSS or self.tolerance != _TOLERANCE:
      raise ValueError(
        f'promises are given, and besides them loss {self.loss!r} and '
        f'tolerance {self.tolerance}: leave these two (LOSS, TOLERANCE) out, '
        'promises say it'
      )
    promises = as_promises(self.promises, self.metric)
    object.__setattr__(self, 'promises', promises)
    if len(promises) == 1:
      object.__setattr__(self, 'promises', None)
      self._put_alone(promises[0])

  def _put_alone(self, promise: Promise) -> None:
    """Takes a promise for the only one."""
    named = promise.metric is not None
    for name, value in (
      # Looked up only where the metric is not left open.
      ('loss', promise.measured() if named else promise.loss),
      ('tolerance', promise.tolerance),
      ('metric', promise.metric),
    ):
      object.__setattr__(self, name, value)

  def settings_of(
    self, policy: decoding.ComputePolicy
  ) -> Sequence[float | dict[str, Any]]:
    """Returns the settings that are tested of a policy."""
    if self.settings is None:
      return exits.usual_thresholds(decoding.rule_of_threshold(policy))
    return self.settings

  def promised(self) -> tuple[Promise, ...]:
    """Returns what is promised, of one loss or of several."""
    if self.promises is None:
      return (Promise(self.loss, self.tolerance, self.metric),)
    return as_promises(self.promises, self.metric)

  def losses(self) -> tuple[ConsistencyLoss, ...]:
    """Returns the loss of each promise.

    Raises:
      ValueError: if a metric is still left open.
    """
    if self.left_open:
      raise ValueError('the metric is left open: ask for_texts first')
    return tuple(promise.measured() for promise in self.promised())

  @property
  def left_open(self) -> bool:
    """Whether a metric is for the texts to choose."""
    return any(
      promise.metric is None and not isinstance(promise.loss, ConsistencyLoss)
      for promise in self.promised()
    )

  def for_texts(self, texts: Sequence[str], *, what: str) -> 'CalibrationPlan':
    """Returns the plan with losses whose metrics see the texts.

    A metric that was left open is chosen by the alphabet of the texts, and by
    nothing else, so that it may be theirs: where texts are mixed, name it.

    Args:
      texts: what losses are measured on.
      what: how errors call them.

    Raises:
      ValueError: if a metric ignores much of them, naming one that does not; or
        if two promises of one loss turn out to have the same metric.
    """
    plan = self
    if self.left_open:
      plan = dataclasses.replace(self, metric=seen_text.default_metric(texts))
    for loss in plan.losses():
      loss.check_sees(texts, what=what)
    return plan

  def statistics(self) -> dict[str, Any]:
    """Returns the keywords of `calibration.calibrate_jointly`.

    And of `next_column_jointly`; with one promise they are what `calibrate` and
    `next_column` are.
    """
    ranges = [loss.loss_range for loss in self.losses()]
    p_value = self.p_value
    if p_value is None:
      low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
      p_value = calibration.P_VALUES[calibration.default_p_value((low, high))]
    return {
      'promises': tuple(promise.bound() for promise in self.promised()),
      'error_rate': self.error_rate,
      'p_value': p_value,
      'procedure': self.procedure or calibration.fixed_sequence(),
    }

"""What a monitor has seen, in words."""

import math

from calm_jax import records

_GUARANTEES = {
  'ever': 'the probability that a false one is ever raised is at most {rate:g}',
  'on_average': 'false ones come every {bound:,.0f} audits on average, or '
  'less often',
}


def describe(state: records.MonitorState) -> str:
  """Says in a few lines what was seen, and whether there is an alarm."""
  watch, bound = state.watch, 1 / state.error_rate
  served = state.served - state.served_before
  guarantee = _GUARANTEES[state.guarantee].format(
    rate=state.error_rate, bound=bound
  )
  lines = [
    f'watched: {state.loss} loss by {state.metric}, certified to be at most '
    f'{state.tolerance:g} on the mean',
    f'audited: {watch.count:,} of {served:,} requests since {state.started}'
    + (f', {_means(watch.mean, watch.recent)}' if watch.count else ''),
    f'e-value: {_power(watch.log_evidence)} now, {_power(watch.greatest)} at '
    f'most; an alarm is raised at {bound:,.0f} ({guarantee})',
    *map(in_words, state.past_alarms),
    'alarm: no' if state.alarm is None else in_words(state.alarm),
  ]
  return '\n'.join(lines)


def in_words(alarm: records.Alarm) -> str:
  """Says in a line what raised an alarm, and whether it stands."""
  seen = (
    f'raised {alarm.raised}, after {alarm.audited:,} audits of '
    f'{alarm.served:,} requests, {_means(alarm.mean_loss, alarm.recent_loss)}'
  )
  if alarm.reset is None:
    return f'alarm: YES, {seen}: decode at full depth, and calibrate again'
  return f'earlier alarm: {seen}; reset {alarm.reset}'


def _means(mean: float, recent: float) -> str:
  return f'mean loss {mean:.4f}, of the latest ones {recent:.4f}'


def _power(log_value: float) -> str:
  """Writes a number of which the logarithm is known, whatever its size.

  >>> _power(0.0), _power(2302.6)
  ('1', '10^1000')
  """
  if log_value < 300:
    return f'{math.exp(log_value):.3g}'
  return f'10^{log_value / math.log(10):.0f}'

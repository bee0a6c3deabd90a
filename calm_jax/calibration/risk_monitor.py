"""A certificate in use: are its losses still what it promises?

What audits found is kept in a file, so that neither a restart nor another job
forgets an alarm. Who decodes and measures is not known here; the file has one
writer at a time, which callers see to.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from calm_jax import records
from calm_jax.calibration import bounds, monitor_states, monitor_words
from calm_jax.calibration.certificate import Certificate
from calm_jax.calibration.loss_watch import LossWatch

_ERROR_RATE, _GUARANTEE = 0.01, 'ever'


def watched_bound(
  certificate: Certificate, metric: str | None = None
) -> bounds.Bound:
  """Returns the promise that can be watched without references.

  Args:
    certificate: the certificate.
    metric: the name of the metric, where it promises several textual losses;
      the first of them if None.

  Raises:
    ValueError: if nothing was certified, or no textual loss is promised.
  """
  if not certificate.certified:
    raise ValueError(
      'nothing was certified, so that outputs are those of the full model: '
      'there is nothing to watch'
    )
  promised = [bound for bound in certificate.bounds if bound.loss == 'textual']
  found = [one for one in promised if metric in (None, one.metric)]
  if found:
    return found[0]
  if promised:
    raise ValueError(
      f'the certificate measures its textual loss by {promised[0].metric}, not '
      f'by {metric}; watch that one'
    )
  raise ValueError(
    'the certificate promises '
    f'{bounds.listed(bound.name for bound in certificate.bounds)}, which needs '
    'references, and requests have none: calibrate a textual loss besides, '
    "PROMISES=(('textual', 0.1), ('signed', 0.02)), or give losses of your own "
    'to calibration.LossWatch'
  )


class RiskMonitor:
  """The textual loss of one certificate, watched as long as it is used.

  Attributes:
    bound: the promise that is watched.
    watch: how it is watched.
    state: what was seen.
  """

  def __init__(
    self,
    certificate: Certificate,
    path: str | os.PathLike | None = None,
    *,
    error_rate: float | None = None,
    guarantee: str | None = None,
    metric: str | None = None,
  ):
    """Begins, or goes on with what a state file holds.

    Args:
      certificate: what is watched.
      path: the state file; None to keep the state in memory.
      error_rate: of false alarms; that of the state, or 0.01, if None.
      guarantee: see `LossWatch`; that of the state, or 'ever', if None.
      metric: see `watched_bound`.

    Raises:
      ValueError: as `watched_bound`; if the state cannot be read, or is of
        another certificate or of other numbers.
    """
    found = None
    if path is not None:
      path = os.path.expanduser(path)
      found = monitor_states.read(path)
    self._path = path
    if path is not None and found is not None:
      monitor_states.check_certificate(found, certificate, path)
      error_rate = found.error_rate if error_rate is None else error_rate
      guarantee = found.guarantee if guarantee is None else guarantee
      metric = found.metric if metric is None else metric
    self.bound = watched_bound(certificate, metric)
    self.watch = LossWatch(
      tolerance=self.bound.tolerance,
      error_rate=_ERROR_RATE if error_rate is None else error_rate,
      loss_range=self.bound.loss_range,
      guarantee=_GUARANTEE if guarantee is None else guarantee,
    )
    self.state = monitor_states.begun(certificate, self.bound, self.watch)
    if path is not None and found is not None:
      monitor_states.check_alike(found, self.state, path)
      self.state = found

  @property
  def alarm(self) -> records.Alarm | None:
    """The alarm that stands, None if there is none."""
    return self.state.alarm

  def check(self, audit: records.Audit, *, where: str) -> None:
    """Checks that an audit is of what is watched.

    Args:
      audit: the audit.
      where: how errors call its place.

    Raises:
      ValueError: if it is of another certificate or loss, or out of range.
    """
    if audit.certificate != self.state.certificate:
      raise ValueError(
        f'{where} was decoded under another certificate, '
        f'{audit.certificate[:19]}.., and {self.state.certificate[:19]}.. is '
        'watched here: give its own certificate, and rows of one certificate '
        'at a time'
      )
    if (audit.loss, audit.metric) != (self.bound.loss, self.bound.metric):
      raise ValueError(
        f'{where} has the {audit.loss} loss by {audit.metric}, and the '
        f'{self.bound.name} is watched here: a state watches one loss; let '
        'generate audit that one (AUDIT_METRIC), or name another state file'
      )
    try:
      self.watch.update(records.WatchState(), [audit.value])
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from None

  def observe(
    self,
    audits: Mapping[int, float],
    *,
    served: int,
    files: Sequence[records.ReadRows] = (),
  ) -> bool:
    """Counts requests and keeps what their audits say.

    Args:
      audits: which of the requests were audited, 0..served-1 and growing, and
        the losses of these.
      served: how many requests there were, audited or not.
      files: what was read of files of rows, where they come from some.

    Returns:
      Whether the alarm was raised by them.

    Raises:
      ValueError: for a loss outside its range; nothing is counted then.
    """
    before, now = self.state, monitor_states.now()
    watch, alarm = before.watch, before.alarm
    for place, loss in audits.items():
      watch = self.watch.update(watch, [loss])
      if alarm is None and watch.alarm_at is not None:
        alarm = records.Alarm(
          raised=now,
          audited=watch.count,
          served=before.served + place + 1 - before.served_before,
          mean_loss=watch.mean,
          recent_loss=watch.recent,
        )
    merged = {one.path: one for one in (*before.files, *files)}
    self._keep(
      dataclasses.replace(
        before,
        watch=watch,
        served=before.served + served,
        updated=now,
        alarm=alarm,
        files=tuple(merged.values()),
      )
    )
    return alarm is not None and before.alarm is None

  def reset(self) -> None:
    """Takes an alarm back and begins anew; the alarm stays on record.

    The error rate is that of the time from here on: each reset may see a false
    alarm of its own.

    Raises:
      ValueError: if there is no alarm.
    """
    if self.alarm is None:
      raise ValueError('there is no alarm to reset')
    now = monitor_states.now()
    past = dataclasses.replace(self.alarm, reset=now)
    self._keep(
      dataclasses.replace(
        self.state,
        started=now,
        updated=now,
        served_before=self.state.served,
        watch=records.WatchState(),
        alarm=None,
        past_alarms=(*self.state.past_alarms, past),
      )
    )

  def describe(self) -> str:
    """Says in a few lines what was seen, and whether there is an alarm."""
    return monitor_words.describe(self.state)

  def _keep(self, state: records.MonitorState) -> None:
    """Takes a state over once it is on disk."""
    if self._path is not None:
      records.write_json(self._path, state)
    self.state = state

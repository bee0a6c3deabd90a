"""What becomes of a certificate in use: audits of requests, and their sum.

An `Audit` is a request that was decoded at full depth as well. What many of
them say together is a `WatchState`; a `MonitorState` keeps it on disk, with the
certificate that it is about.
"""

import dataclasses

from calm_jax.records.json_files import FORMAT_VERSION

# Beside a certificate.
MONITOR_NAME = 'monitor.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
  """One request that was also decoded at full depth.

  Attributes:
    certificate: fingerprint of the certificate that it was served under.
    loss: the name of the loss.
    metric: the text metric that it is measured by.
    value: the loss of what was served.
    full_text: what the full model says.
  """

  certificate: str
  loss: str
  metric: str
  value: float
  full_text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchState:
  """What the losses so far say together; see `calibration.LossWatch`.

  Attributes:
    count: t, how many there were.
    total: their sum, in their units.
    recent: the mean of the latest fifty or so, the older the less.
    log_wealths: ln A_t(b) of every bet; () before the first loss.
    log_evidence: ln M_t.
    greatest: the largest of ln M_1, .., ln M_t; 0 before the first loss.
    alarm_at: the first t at which M_t reached the bound; None if it never did.
  """

  count: int = 0
  total: float = 0.0
  recent: float = 0.0
  log_wealths: tuple[float, ...] = ()
  log_evidence: float = 0.0
  greatest: float = 0.0
  alarm_at: int | None = None

  @property
  def mean(self) -> float:
    """The mean loss; NaN before the first one."""
    return self.total / self.count if self.count else float('nan')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alarm:
  """The mean loss was found to be above the tolerance.

  Attributes:
    raised: when it was noticed, ISO 8601.
    audited: after so many audits.
    served: after so many requests.
    mean_loss: of those audits.
    recent_loss: of the latest of them; see `WatchState.recent`.
    reset: when it was reset, ISO 8601; None while it stands.
  """

  raised: str
  audited: int
  served: int
  mean_loss: float
  recent_loss: float
  reset: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadRows:
  """How much of a file of rows was read.

  Attributes:
    path: the file, absolute.
    rows: lines read.
    size: the bytes that these take.
    digest: of those bytes.
  """

  path: str
  rows: int
  size: int
  digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorState:
  """The audits of one certificate, as far as they are known.

  Attributes:
    certificate: its fingerprint.
    loss: the name of the loss that is watched.
    metric: the text metric that it is measured by.
    tolerance: the bound on its mean that was certified.
    loss_range: the smallest and the largest value that it can have.
    error_rate: of false alarms.
    guarantee: what the error rate is of: 'ever' or 'on_average'.
    started: when watching began or was reset, ISO 8601.
    updated: when the latest request was counted, ISO 8601.
    served: requests since the very beginning, audited or not; which of the next
      ones are audited depends on this number.
    served_before: those of them before the latest reset.
    watch: what the audits say since `started`.
    alarm: the alarm that stands, None if there is none.
    past_alarms: those that were reset.
    files: the files of rows that audits were read from.
    format_version: of this schema.
  """

  certificate: str
  loss: str
  metric: str
  tolerance: float
  loss_range: tuple[float, ...]
  error_rate: float
  guarantee: str
  started: str
  updated: str
  served: int = 0
  served_before: int = 0
  watch: WatchState = WatchState()
  alarm: Alarm | None = None
  past_alarms: tuple[Alarm, ...] = ()
  files: tuple[ReadRows, ...] = ()
  format_version: int = FORMAT_VERSION

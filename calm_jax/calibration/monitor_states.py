"""The state of a watched certificate: begun, and read again."""

import datetime
import os

from calm_jax import records
from calm_jax.calibration import bounds
from calm_jax.calibration.certificate import Certificate
from calm_jax.calibration.loss_watch import LossWatch

# What cannot change on the way.
_FIXED = ('metric', 'tolerance', 'loss_range', 'error_rate', 'guarantee')


def begun(
  certificate: Certificate, bound: bounds.Bound, watch: LossWatch
) -> records.MonitorState:
  """Returns the state of a certificate of which nothing was seen yet.

  Args:
    certificate: the certificate.
    bound: its promise that is watched.
    watch: how it is watched.
  """
  began = now()
  return records.MonitorState(
    certificate=certificate.fingerprint,
    loss=bound.loss,
    metric=bound.metric,
    tolerance=bound.tolerance,
    loss_range=bound.loss_range,
    error_rate=watch.error_rate,
    guarantee=watch.guarantee,
    started=began,
    updated=began,
  )


def read(path: str | os.PathLike) -> records.MonitorState | None:
  """Reads a state file, None if there is none.

  Raises:
    ValueError: if it cannot be read.
  """
  path = os.path.expanduser(path)
  if not os.path.exists(path):
    return None
  return records.read_record(path, records.MonitorState)


def check_certificate(
  state: records.MonitorState,
  certificate: Certificate,
  path: str | os.PathLike,
) -> None:
  """Checks that a state is of a certificate.

  Args:
    state: read from a file.
    certificate: what is watched.
    path: of the file.

  Raises:
    ValueError: if it is of another one.
  """
  if state.certificate != certificate.fingerprint:
    raise ValueError(
      f'{os.fspath(path)} is of another certificate, '
      f'{state.certificate[:19]}.., and this one is '
      f'{certificate.fingerprint[:19]}..: name another state file, or remove '
      'that one if its certificate is no longer used'
    )


def check_alike(
  state: records.MonitorState,
  expected: records.MonitorState,
  path: str | os.PathLike,
) -> None:
  """Checks that a state can be gone on with, by the numbers it began with.

  Args:
    state: read from a file.
    expected: what `begun` would begin with.
    path: of the file.

  Raises:
    ValueError: if it was begun with other numbers.
  """
  for name in _FIXED:
    there, here = getattr(state, name), getattr(expected, name)
    if there != here:
      raise ValueError(
        f'{os.fspath(path)} was begun with {name} {there!r}, not {here!r}, and '
        'a number that is changed on the way guarantees nothing: leave it out, '
        'or name another state file'
      )


def standing_alarm(
  certificate: Certificate, path: str | os.PathLike
) -> records.Alarm | None:
  """Returns the alarm that a state file has of a certificate, None for none.

  Args:
    certificate: the certificate. The state of another one says nothing of it.
    path: the state file, which need not be there.

  Raises:
    ValueError: if it cannot be read.
  """
  state = read(path)
  if state is None or state.certificate != certificate.fingerprint:
    return None
  return state.alarm


def now() -> str:
  """Returns the time, ISO 8601 in UTC."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')

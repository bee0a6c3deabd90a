"""Where processes meet before JAX connects them.

Process 0 holds the roll call at the coordinator's address, before JAX's own
service listens there; the others join it with a report. When all are there,
process 0 compares the reports and tells everybody to start, or why not. Both
ends raise within the stated time, and name who is missing.
"""

import errno
import selectors
import socket
import sys
import time
from collections.abc import Callable, Sequence

from calm_jax.processes.meeting import tokens
from calm_jax.processes.meeting.joiner import (
  GREETING,
  OTHER_TOKEN,
  RETRY_SECONDS,
  Refused,
)
from calm_jax.processes.meeting.links import Link, NotOurs
from calm_jax.processes.meeting.membership import Membership
from calm_jax.processes.meeting.reports import Report

# After a refusal, those who come late are still told of it.
_LINGER_SECONDS = 5.0
_IMPATIENT_AFTER_SECONDS = 15.0
# Within which a connection must say who it is; ours do so at once.
_GREETING_SECONDS = 10.0

# From all reports to what keeps them from starting, a line each.
Judge = Callable[[Sequence[Report]], Sequence[str]]


def hold(
  membership: Membership,
  report: Report,
  *,
  judge: Judge,
  timeout_seconds: float,
  token: str = '',
) -> dict[int, Link]:
  """Holds the roll call, as process 0.

  Args:
    membership: of process 0.
    report: its own.
    judge: called with all reports, in order, when all are there.
    timeout_seconds: how long to wait for the others.
    token: what the others must have, too, to be let in; '' for nothing.

  Returns:
    The connections to the other processes, by their index.

  Raises:
    Refused: if a process did not come, came twice, counts otherwise, or the
      judge objects; those who came are told, and raise the same.
  """
  with _listen(membership, timeout_seconds) as listener:
    call = _RollCall(membership, report, listener, token)
    try:
      call.wait(timeout_seconds)
      if objections := judge(call.reports()):
        raise Refused('; '.join(objections))
    except Refused as error:
      call.refuse(str(error), linger=not call.complete)
      raise
  return call.start()


def _listen(membership: Membership, timeout_seconds: float) -> socket.socket:
  """Listens on the coordinator's port, on all addresses of this host."""
  _, port = membership.address
  both = socket.has_dualstack_ipv6()
  # A former start of the job may be closing.
  deadline = time.monotonic() + min(timeout_seconds, 5.0)
  while True:
    try:
      return socket.create_server(
        ('', port),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
        backlog=1024,
      )
    except OSError as error:
      if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
        time.sleep(RETRY_SECONDS)
        continue
      raise Refused(
        f'{membership} cannot listen on port {port} ({error.strerror}): end '
        'what holds it, or give all processes another port in '
        '--coordinator_address'
      ) from None


class _RollCall:
  """Who has come so far."""

  def __init__(self, membership, report, listener, token):
    self._membership = membership
    self._token = token
    # Who has greeted and must still show the token.
    self._asked: dict[Link, tuple[tokens.Gate, Report]] = {}
    self._turned_away = 0
    self._listener = listener
    self._reports = {0: report}
    self._links: dict[int, Link] = {}
    # Connections that have not said who they are, the oldest first, and until
    # when they may.
    self._strangers: dict[Link, float] = {}
    # Each process has one, and some that it gave up.
    self._most_strangers = 4 * membership.count + 16
    self._selector = selectors.DefaultSelector()
    self._selector.register(listener, selectors.EVENT_READ)

  @property
  def complete(self) -> bool:
    return len(self._reports) == self._membership.count

  def reports(self) -> list[Report]:
    return [report for _, report in sorted(self._reports.items())]

  def wait(self, seconds: float) -> None:
    """Waits until all are there; raises Refused."""
    started = time.monotonic()
    impatient = False
    while not self.complete:
      waited = time.monotonic() - started
      if waited >= seconds:
        raise Refused(self._missing(seconds))
      if waited >= _IMPATIENT_AFTER_SECONDS and not impatient:
        impatient = True
        print(f'still waiting for {self._absent()}', file=sys.stderr)
      if refusal := self._look(min(seconds - waited, 1.0)):
        raise Refused(refusal)

  def start(self) -> dict[int, Link]:
    """Tells everybody to start; returns the connections."""
    for index, link in self._links.items():
      try:
        link.send({'start': str(self._reports[0])})
      except OSError:
        raise Refused(f'{self._reports[index]} went away at once') from None
    self._selector.close()
    for link in self._strangers:
      link.close()
    return self._links

  def refuse(self, reason: str, *, linger: bool) -> None:
    """Tells everybody why not, and for a while those who still come."""
    deadline = time.monotonic() + (_LINGER_SECONDS if linger else 0)
    told: set[int] = set()
    while True:
      for index in self._links.keys() - told:
        told.add(index)
        try:
          self._links[index].send({'refused': reason})
        except OSError:
          pass
      if self.complete or time.monotonic() >= deadline:
        break
      self._look(0.2)
    for link in (*self._links.values(), *self._strangers):
      link.close()

  def _look(self, seconds: float) -> str | None:
    """Takes in what has come; returns a reason to stop, if there is one."""
    refusal = None
    found = [key.fileobj for key, _ in self._selector.select(seconds)]
    for link in found:
      if link is not self._listener:
        refusal = self._read(link) or refusal
    for link, until in list(self._strangers.items()):
      if time.monotonic() >= until:
        self._forget(link)
    # Last, for it may close others.
    if self._listener in found:
      self._accept()
    return refusal

  def _accept(self) -> None:
    """Takes a connection; where there are too many, in place of the oldest.

    Ours greet as soon as they are connected and come again if they are closed,
    so that whoever opens many connections and says nothing keeps nobody out.
    """
    if len(self._strangers) >= self._most_strangers:
      self._forget(next(iter(self._strangers)))
    try:
      connection, _ = self._listener.accept()
    except OSError:
      # It is gone again, or this process may open no more files.
      if self._strangers:
        self._forget(next(iter(self._strangers)))
      return
    link = Link(connection)
    self._strangers[link] = time.monotonic() + _GREETING_SECONDS
    self._selector.register(link, selectors.EVENT_READ)

  def _read(self, link: Link) -> str | None:
    try:
      messages = link.receive()
      if not messages:
        return None
      report = self._admitted(link, messages[0])
    except (EOFError, OSError, ValueError, KeyError, TypeError, AttributeError):
      # A stranger, or one that gave up: it may come again.
      self._forget(link)
      return None
    if report is None:
      return None
    self._strangers.pop(link, None)
    return self._enter(link, report)

  def _admitted(self, link: Link, message: dict) -> Report | None:
    """Returns who it is; None if it has yet to show the token.

    Raises:
      ValueError: if it is none of us.
    """
    if link in self._asked:
      gate, report = self._asked.pop(link)
      if gate.admits(message):
        return report
      self._turned_away += 1
      link.send({'refused': OTHER_TOKEN})
      raise NotOurs('another token')
    if message.get('greeting') != GREETING:
      raise NotOurs('another greeting')
    report = Report.from_message(message['report'])
    if not self._token:
      return report
    gate = tokens.Gate(self._token, message)
    self._asked[link] = gate, report
    link.send(gate.challenge())
    return None

  def _enter(self, link: Link, report: Report) -> str | None:
    count = self._membership.count
    there = self._reports.get(report.index)
    refusal = None
    if report.count != count:
      refusal = (
        f'{report} was told that there are {report.count} processes, '
        f'{self._reports[0]} that there are {count}: give all the same '
        '--process_count'
      )
    elif there is not None:
      refusal = (
        f'there are two of number {report.index}, on {there.host} and on '
        f'{report.host}: give each process its own --process_index'
      )
    if refusal:
      try:
        link.send({'refused': refusal})
      except OSError:
        pass
      self._forget(link)
      return refusal
    self._reports[report.index] = report
    self._links[report.index] = link
    link.name = str(report)
    return None

  def _forget(self, link: Link) -> None:
    self._selector.unregister(link)
    self._strangers.pop(link, None)
    if self._asked.pop(link, None) is not None:
      self._turned_away += 1
    for index, known in list(self._links.items()):
      if known is link:
        del self._links[index], self._reports[index]
    link.close()

  def _absent(self) -> str:
    absent = sorted(set(range(self._membership.count)) - self._reports.keys())
    shown = ', '.join(map(str, absent[:8])) + (', ...' if absent[8:] else '')
    return f'{len(absent)} of {self._membership.count} processes ({shown})'

  def _missing(self, seconds: float) -> str:
    strangers = (
      f' ({self._turned_away} came without the job token)'
      if self._turned_away
      else ''
    )
    return (
      f'{self._absent()} did not come to {self._membership.coordinator} '
      f'within {seconds:g} s{strangers}. Start them, or set --process_count to '
      'what runs; if they run, that address or port is closed to them'
    )

"""Runs a job in one process, or as one of several that start and end together.

Several meet first (`calm_jax.processes`), compare what they have, and only then
let JAX connect them; from there on each knows when another one dies, and ends
with a line that says so. JAX's heartbeats stay as a second net, for processes
that hang: it then aborts the others with a message of its own.
"""

import collections
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping

import jax

from calm_jax.processes import meeting
from calm_jax.processes.start import environment, process_flags

# When another process dies, collectives of this one may fail first.
_WAIT_FOR_CAUSE_SECONDS = 2.0
_STOP_TOGETHER_SECONDS = 10.0
# JAX's own limit on waiting for the slowest process at the end. The watch ends
# that wait when there is nothing to wait for.
_WAIT_AT_THE_END_SECONDS = 7 * 24 * 3600
# EX_TEMPFAIL: starting again may help, unlike after an error (1).
EXIT_OTHER_DIED = 75
_AGAIN = (
  'Start the same command again in all processes: it goes on from the last '
  'checkpoint.'
)


class Alone:
  """The only process of a job."""

  def run(self, job: Callable[[], object], *, expected) -> None:
    """Runs the job; an expected error ends in one line."""
    try:
      job()
    except BrokenPipeError:
      # A reader of the output that has left: `cli.app_runner` knows.
      raise
    except expected as error:
      sys.exit(_in_words(error))


class Member:
  """One of several processes, connected."""

  def __init__(self, membership: meeting.Membership, links):
    """Lets JAX connect the processes, which have met.

    Args:
      membership: which one this is.
      links: from the roll call.
    """
    self._membership = membership
    self._watch = meeting.Watch(
      links,
      silence_seconds=process_flags.HEARTBEAT_TIMEOUT.value,
      on_end=self._end_with,
      on_silence=self._warn_of,
    )
    # On CPU, collectives of programs in flight may wait for each other's
    # threads for ever; elsewhere this changes nothing.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
    jax.distributed.initialize(
      membership.coordinator,
      membership.count,
      membership.index,
      initialization_timeout=process_flags.INITIALIZATION_TIMEOUT.value,
      heartbeat_timeout_seconds=process_flags.HEARTBEAT_TIMEOUT.value,
      shutdown_timeout_seconds=_WAIT_AT_THE_END_SECONDS,
    )

  def run(self, job: Callable[[], object], *, expected) -> None:
    """Runs the job; however it ends, no process is left waiting."""
    try:
      self._check_devices()
      job()
    except expected as error:
      self._fail(_in_words(error))
    except Exception as error:
      traceback.print_exc()
      self._fail(_in_words(error))
    except (KeyboardInterrupt, SystemExit) as stop:
      # Training stops together; nothing else does.
      stopping = threading.Thread(target=jax.distributed.shutdown, daemon=True)
      stopping.start()
      stopping.join(_STOP_TOGETHER_SECONDS)
      if stopping.is_alive():
        self._fail(f'stopped by {type(stop).__name__}')
      self._watch.leave()
      raise
    jax.distributed.shutdown()
    self._watch.leave()

  def _check_devices(self) -> None:
    devices = collections.defaultdict(list)
    for device in jax.devices():
      devices[device.process_index].append(device.device_kind)
    wrong = environment.device_objections(self._membership, devices)
    if wrong:
      raise ValueError('; '.join(wrong))
    if self._membership.index == 0:
      print(
        f'{self._membership.count} processes with {jax.device_count()} x '
        f'{jax.devices()[0].device_kind} meet at '
        f'{self._membership.coordinator}; should one die, the others end '
        f'within {process_flags.HEARTBEAT_TIMEOUT.value} s. {_AGAIN}',
        flush=True,
      )

  def _end_with(self, ending: meeting.Ending) -> None:
    """Ends this process because another one has ended."""
    if ending.failed:
      _exit(f'{self._membership} ends because of {ending.what}', 1)
    _exit(f'{self._membership} ends: {ending.what}. {_AGAIN}', EXIT_OTHER_DIED)

  def _warn_of(self, name: str) -> None:
    """Says before JAX aborts this process which one it waited for."""
    seconds = process_flags.HEARTBEAT_TIMEOUT.value
    print(
      f'{self._membership}: {name} has been silent for {seconds / 2:g} s. If '
      f'it hangs, JAX ends this process {seconds} s after its last sign of '
      f'life. {_AGAIN}',
      file=sys.stderr,
      flush=True,
    )

  def _fail(self, what: str) -> None:
    """Ends this process because of an error of its own."""
    # If another one has died, the watch says so and ends this one here.
    time.sleep(_WAIT_FOR_CAUSE_SECONDS)
    self._watch.leave(what.splitlines()[0][:500])
    _exit(f'{self._membership}: {what}', 1)


def _in_words(error: Exception) -> str:
  """Returns what an error says.

  gin adds which function was called, and where it lies in memory.
  """
  message = str(error).split('\n  In call to configurable')[0]
  return f'{type(error).__name__}: {message}'


def _exit(line: str, code: int) -> None:
  """Ends at once: an orderly end would wait for the other processes."""
  sys.stdout.flush()
  print(line, file=sys.stderr)
  sys.stderr.flush()
  os._exit(code)


def start(
  *,
  configuration: str,
  directories: Mapping[str, str],
  error: str | None = None,
  one_process: bool = False,
) -> Alone | Member:
  """Starts this process of the job, which has not touched a device yet.

  Args:
    configuration: the text of the gin configuration.
    directories: what for -> a directory that the job writes to.
    error: why this process cannot go on; the others are told.
    one_process: whether the job cannot be shared.

  Raises:
    SystemExit: with one line, if it cannot start; so do all other processes.
  """
  try:
    membership = process_flags.membership()
  except ValueError as problem:
    sys.exit(str(problem))
  if membership is not None and one_process:
    sys.exit(
      f'{membership}: this job runs in one process; start it once, without '
      'flags of several'
    )
  marks = {}
  try:
    if error is None:
      for purpose, directory in directories.items():
        marks[purpose] = meeting.Mark(directory)
  except ValueError as problem:
    error = f'{purpose}: {problem}'
  links = ()
  try:
    if membership is not None:
      links = _meet(membership, configuration, marks, error)
  except meeting.Refused as refusal:
    sys.exit(f'{membership} does not start: {refusal}')
  finally:
    for mark in marks.values():
      mark.remove()
  if error is not None:
    sys.exit(error)
  return Alone() if membership is None else Member(membership, links)


def _meet(
  membership: meeting.Membership,
  configuration: str,
  marks: Mapping[str, meeting.Mark],
  error: str | None,
) -> list:
  """Returns the links to the other processes, once all agree."""
  report = meeting.Report(
    index=membership.index,
    count=membership.count,
    facts=environment.facts(configuration),
    marks={
      purpose: (mark.directory, mark.name) for purpose, mark in marks.items()
    },
    error=error,
  )
  timeout = process_flags.INITIALIZATION_TIMEOUT.value
  if membership.index > 0:
    return [
      meeting.join(
        membership,
        report,
        timeout_seconds=timeout,
        token=process_flags.job_token(),
      )
    ]
  links = meeting.hold(
    membership,
    report,
    judge=environment.objections,
    timeout_seconds=timeout,
    token=process_flags.job_token(),
  )
  return list(links.values())

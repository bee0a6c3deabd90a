"""Notices that a process of the job has ended, and says which one.

Every process keeps its connection to process 0 open. The kernel closes it when
a process dies, however it dies, and breaks it when a host falls silent; process
0 then tells the others. A process that leaves in order, or with an error of its
own, says so first. One that hangs is named, and left to JAX's heartbeats, which
do not depend on Python.
"""

import dataclasses
import selectors
import threading
import time
from collections.abc import Callable, Iterable

from calm_jax.processes.meeting.links import Link, NotOurs


@dataclasses.dataclass(frozen=True)
class Ending:
  """That a process has ended out of order.

  Attributes:
    what: which one and how, as a clause.
    failed: whether it said an error of its own; it was killed, or its host
      fell silent, otherwise.
  """

  what: str
  failed: bool


# Called in the thread of the watch, at most once.
OnEnd = Callable[[Ending], None]


class Watch:
  """Watches the other processes from a thread.

  Process 0 has a connection to each of them, the others have one to it.
  """

  def __init__(
    self,
    links: Iterable[Link],
    *,
    silence_seconds: float,
    on_end: OnEnd,
    on_silence: Callable[[str], None],
  ):
    """Starts to watch.

    Args:
      links: what `hold` or `join` returned.
      silence_seconds: after so long without a sign of life a host is dead.
      on_end: what to do when a process has ended out of order.
      on_silence: called with the name of a process that has given no sign of
        life for half of that time; it may be busy, or hang.
    """
    self._links = list(links)
    self._on_end = on_end
    self._lock = threading.Lock()
    self._on_silence = on_silence
    self._silence_seconds = silence_seconds
    self._left = False
    self._signed = time.monotonic()
    self._heard = dict.fromkeys(self._links, self._signed)
    self._silent: set[Link] = set()
    for link in self._links:
      link.keep_alive(silence_seconds)
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def leave(self, error: str | None = None) -> None:
    """Tells the others that this process ends, and why if it failed.

    What they do from here on is no longer watched.
    """
    with self._lock:
      if self._left:
        return
      self._left = True
      self._tell({'left': error})

  def _tell(self, message: dict) -> None:
    for link in self._links:
      try:
        link.send(message)
      except OSError:
        # It is gone as well.
        pass

  def _run(self) -> None:
    with selectors.DefaultSelector() as selector:
      for link in self._links:
        try:
          selector.register(link, selectors.EVENT_READ)
        except ValueError:
          # Closed by this process, which was done before the thread began.
          continue
      while selector.get_map():
        for key, _ in selector.select(self._silence_seconds / 8):
          self._heard[key.fileobj] = time.monotonic()
          try:
            messages = key.fileobj.receive()
          except (EOFError, OSError, NotOurs) as error:
            self._end(Ending(f'{key.fileobj.name} is gone ({error})', False))
            return
          for message in messages:
            if ending := _ending(key.fileobj, message):
              self._end(ending)
              return
            if 'silent' in message:
              self._on_silence(str(message['silent']))
            elif 'left' in message:
              selector.unregister(key.fileobj)
        self._look_after([key.fileobj for key in selector.get_map().values()])

  def _look_after(self, links: list[Link]) -> None:
    """Gives a sign of life, and says who has given none for long."""
    now = time.monotonic()
    with self._lock:
      if self._left:
        return
      if now - self._signed >= self._silence_seconds / 8:
        self._signed = now
        self._tell({'alive': True})
      for link in links:
        silent = now - self._heard[link] >= self._silence_seconds / 2
        if silent and link not in self._silent:
          self._tell({'silent': link.name})
          self._on_silence(link.name)
        (self._silent.add if silent else self._silent.discard)(link)

  def _end(self, ending: Ending) -> None:
    with self._lock:
      if self._left:
        return
      self._left = True
      # From process 0 all others hear of it; nobody waits for the others.
      self._tell({'ended': dataclasses.asdict(ending)})
    self._on_end(ending)


def _ending(link: Link, message: dict) -> Ending | None:
  """Returns what ended out of order; None if the other one left in order."""
  ended = message.get('ended')
  if isinstance(ended, dict):
    return Ending(str(ended.get('what')), ended.get('failed') is True)
  error = message.get('left')
  return None if error is None else Ending(f'{link.name}: {error}', True)

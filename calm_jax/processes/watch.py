"""Notices that a process of the job has ended, and says which one.

Every process keeps its connection to process 0 open. The kernel closes it when
a process dies, however it dies, and breaks it when a host falls silent; process
0 then tells the others. A process that leaves in order, or with an error of its
own, says so first.
"""

import selectors
import threading
from collections.abc import Callable, Mapping

from calm_jax.processes.links import Link, NotOurs

# Called with what happened, in a thread of the watch, at most once.
OnEnd = Callable[[str], None]


class Watch:
  """Watches the other processes from a thread.

  Process 0 has a connection to each of them, the others have one to it.
  """

  def __init__(
    self,
    links: Mapping[int, Link],
    *,
    names: Mapping[int, str],
    silence_seconds: float,
    on_end: OnEnd,
  ):
    """Starts to watch.

    Args:
      links: index -> connection, from `hold` or `join`.
      names: index -> how to call that process.
      silence_seconds: after so long without a sign of life a host is dead.
      on_end: what to do when a process has ended out of order.
    """
    self._links = dict(links)
    self._names = names
    self._on_end = on_end
    self._lock = threading.Lock()
    self._left = False
    for link in self._links.values():
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
    for link in self._links.values():
      try:
        link.send(message)
      except OSError:
        # It is gone as well.
        pass

  def _run(self) -> None:
    with selectors.DefaultSelector() as selector:
      for index, link in self._links.items():
        selector.register(link, selectors.EVENT_READ, index)
      while selector.get_map():
        for key, _ in selector.select():
          ended, done = self._read(key.fileobj, self._names[key.data])
          if ended is not None:
            self._end(ended)
            return
          if done:
            selector.unregister(key.fileobj)

  def _read(self, link: Link, name: str) -> tuple[str | None, bool]:
    """Returns what ended out of order, if so, and whether all is said."""
    try:
      messages = link.receive()
    except (EOFError, OSError, NotOurs) as error:
      return f'{name} is gone ({error})', True
    for message in messages:
      if 'ended' in message:
        return message['ended'], True
      if 'left' in message:
        error = message['left']
        return (None if error is None else f'{name}: {error}'), True
    return None, False

  def _end(self, what: str) -> None:
    with self._lock:
      if self._left:
        return
      self._left = True
      # From process 0 all others hear of it; nobody waits for the others.
      self._tell({'ended': what})
    self._on_end(what)

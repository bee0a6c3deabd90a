"""Messages between two processes: a JSON object a line, over TCP."""

import json
import socket
from typing import Any

# Of a message; a configuration is a few thousand characters.
_LONGEST = 1 << 22


class NotOurs(ValueError):
  """What came is no message of this program."""


class Link:
  """A connection to another process.

  Attributes:
    socket: the connection.
    name: how to call who is at the other end.
  """

  def __init__(self, connection: socket.socket, name: str = 'a stranger'):
    """Takes over a connected socket."""
    self.socket = connection
    self.name = name
    self._received = b''

  def fileno(self) -> int:
    """Lets a selector wait for it."""
    return self.socket.fileno()

  def send(self, message: dict[str, Any]) -> None:
    """Sends a message; raises OSError if the other side is gone."""
    self.socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, *, one: bool = False) -> list[dict[str, Any]]:
    """Waits for data and returns the messages that are complete with it.

    Args:
      one: return one message at most, and leave what came behind it where a
        selector still sees it: for a reader that hands the link on.

    Raises:
      EOFError: if the other side has closed the connection.
      OSError: if the connection is broken, or nothing came in time.
      NotOurs: if it is no message.
    """
    size = 65536
    if one:
      waiting = self.socket.recv(size, socket.MSG_PEEK)
      size = waiting.find(b'\n') + 1 or len(waiting) or 1
    data = self.socket.recv(size)
    if not data:
      raise EOFError('the connection was closed')
    *lines, self._received = (self._received + data).split(b'\n')
    if len(self._received) > _LONGEST:
      raise NotOurs(f'a line of over {_LONGEST} bytes')
    messages = []
    for line in lines:
      try:
        message = json.loads(line)
      except (ValueError, RecursionError):
        raise NotOurs(repr(line[:40])) from None
      if not isinstance(message, dict):
        raise NotOurs(repr(line[:40]))
      messages.append(message)
    return messages

  def keep_alive(self, seconds: float) -> None:
    """Breaks the connection once the other host is silent for so long.

    The kernel asks and answers, however busy the processes are.
    """
    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
      'TCP_KEEPIDLE': max(1, round(seconds / 4)),
      'TCP_KEEPINTVL': max(1, round(seconds / 8)),
      'TCP_KEEPCNT': 4,
      'TCP_USER_TIMEOUT': round(seconds * 750),
    }
    for name, value in options.items():
      # macOS has some of them only.
      if hasattr(socket, name):
        self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def close(self) -> None:
    """Closes the connection."""
    self.socket.close()

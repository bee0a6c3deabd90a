"""A port for processes that talk to each other on this machine."""

import socket


def free_port():
  """Returns a port that nothing listens on."""
  with socket.socket() as sock:
    sock.bind(('localhost', 0))
    return sock.getsockname()[1]

"""Which process of how many this is, and where the first one listens."""

import dataclasses
import socket


@dataclasses.dataclass(frozen=True)
class Membership:
  """One process's place in a job.

  Attributes:
    coordinator: 'host:port', where process 0 listens.
    count: how many processes the job has, at least 1.
    index: which one this is, 0..count-1.
  """

  coordinator: str
  count: int
  index: int

  def __post_init__(self):
    """Checks the values.

    Raises:
      ValueError: naming the bad one.
    """
    host, colon, port = self.coordinator.rpartition(':')
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
      raise ValueError(
        f'the coordinator address must be host:port, got {self.coordinator!r}; '
        'for example --coordinator_address=10.0.0.1:8476'
      )
    if self.count < 1:
      raise ValueError(f'the process count must be >= 1, got {self.count}')
    if not 0 <= self.index < self.count:
      raise ValueError(
        f'the process index {self.index} is out of range: {self.count} '
        f'processes are numbered 0 to {self.count - 1}'
      )

  @property
  def address(self) -> tuple[str, int]:
    """The coordinator's host, without brackets, and port."""
    host, _, port = self.coordinator.rpartition(':')
    return host.strip('[]'), int(port)

  def __str__(self) -> str:
    """Says which process this is."""
    return f'process {self.index} of {self.count} on {socket.gethostname()}'

"""What several processes of one job say to each other.

`jax.distributed` has made them one job, and each has its own devices. They talk
rarely: each decodes its share of the inputs by itself, and what came out is
gathered once. A process that has finished waits for the slowest however long
that takes; one that has died is noticed by JAX's heartbeats.
"""

import dataclasses
import itertools

import jax
import numpy as np
from jax.experimental import multihost_utils

# Longer than any job: whether the others live is for heartbeats to say.
_LONGEST_WAIT_MILLISECONDS = 30 * 24 * 3600 * 1000

_waits = itertools.count()


@dataclasses.dataclass(frozen=True)
class Share:
  """Which rows of the data are this process's.

  Attributes:
    index: which process, 0..count-1.
    count: how many share the rows.
  """

  index: int = 0
  count: int = 1

  def __post_init__(self):
    """Raises ValueError if there is no such process."""
    if not 0 <= self.index < self.count:
      raise ValueError(
        f'process {self.index} of {self.count} does not exist: indices go from '
        '0 to count - 1'
      )

  @classmethod
  def here(cls) -> 'Share':
    """Returns the share of this process among those of the job."""
    return cls(jax.process_index(), jax.process_count())

  def holds(self, place):
    """Whether the row at a place of the data, from 0, is this process's.

    Neighbours go to different processes, so that data sorted by length give
    everybody as much to do.

    >>> [place for place in range(5) if Share(1, 2).holds(place)]
    [1, 3]
    """
    return place % self.count == self.index

  def gather(self, payload: bytes) -> list[bytes]:
    """Returns what each process gives, in their order; all must call it."""
    if self.count == 1:
      return [payload]
    wait_for_all('gather')
    lengths = multihost_utils.process_allgather(np.int32(len(payload)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [
      row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)
    ]


def is_main_process() -> bool:
  """Whether this is the process that prints and writes text files."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Returns whether `flag` holds in some process; all must call it."""
  if jax.process_count() == 1:
    return bool(flag)
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def sum_over_processes(array: np.ndarray) -> np.ndarray:
  """Returns the sum of what each process gives; all must call it."""
  if jax.process_count() == 1:
    return array
  return multihost_utils.process_allgather(array).sum(axis=0, dtype=array.dtype)


def wait_for_all(name: str) -> None:
  """Returns when all processes have called it, in the same order.

  No device takes part, so that nothing times out behind a slow process.

  Args:
    name: what is waited for, for the error if a process dies meanwhile.
  """
  if jax.process_count() == 1:
    return
  # Orbax names the client of jax.distributed in public; JAX itself does not.
  from orbax.checkpoint import multihost

  multihost.get_jax_distributed_client().wait_at_barrier(
    f'calm_jax/{next(_waits)}/{name}', _LONGEST_WAIT_MILLISECONDS
  )

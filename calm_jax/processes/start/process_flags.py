"""Flags of a job that several processes run, read together.

`--multiprocess` takes over what JAX finds out about the cluster (TPU pod,
SLURM, Kubernetes, MPI); otherwise `--coordinator_address`, `--process_count`
and `--process_index` say it.
"""

import importlib
import os
from typing import Any

from absl import flags

from calm_jax.processes.meeting import Membership

# Where JAX finds out about clusters.
_CLUSTERS = 'jax._src.clusters'

_MULTIPROCESS = flags.DEFINE_bool(
  'multiprocess',
  False,
  'Run as one of several processes; JAX finds out which from the cluster (TPU '
  'pod, SLURM, Kubernetes, Open MPI).',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'host:port of process 0, where JAX finds no cluster; '
  '$JAX_COORDINATOR_ADDRESS if not given.',
)
_COUNT = flags.DEFINE_integer(
  'process_count', None, 'How many processes run the job.'
)
_INDEX = flags.DEFINE_integer(
  'process_index', None, 'Which of them this is, from 0.'
)
INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
  'initialization_timeout',
  300,
  'Seconds that processes wait for each other at the start.',
  lower_bound=1,
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  'heartbeat_timeout_seconds',
  60,
  'Seconds after which a silent process counts as dead, and the others end.',
  lower_bound=4,
)
ALL = (
  _MULTIPROCESS,
  _COORDINATOR,
  _COUNT,
  _INDEX,
  INITIALIZATION_TIMEOUT,
  HEARTBEAT_TIMEOUT,
)


def declare_key_flags() -> None:
  """Shows the flags in the --help of the module that calls this."""
  for flag in ALL:
    flags.declare_key_flag(flag.name)


def job_token() -> str:
  """Returns the secret that the processes of the job share; '' without one.

  From the environment: other users of a host can read arguments.
  """
  return os.environ.get('CALM_JAX_JOB_TOKEN', '')


def membership() -> Membership | None:
  """Returns this process's place among several; None if it is the only one.

  Raises:
    ValueError: for flags that are half given, contradict each other, or name
      no process, and where JAX finds no cluster.
  """
  address = _COORDINATOR.value or os.environ.get('JAX_COORDINATOR_ADDRESS')
  given: dict[str, Any] = {
    '--coordinator_address': address,
    '--process_count': _COUNT.value,
    '--process_index': _INDEX.value,
  }
  missing = [name for name, value in given.items() if value is None]
  if _MULTIPROCESS.value:
    if _COUNT.value is not None or _INDEX.value is not None:
      raise ValueError(
        '--multiprocess finds out what --process_count and --process_index '
        'say: give one or the other'
      )
    found = _detected(address)
  elif len(missing) == len(given):
    return None
  elif missing:
    source = '' if _COORDINATOR.value else ' ($JAX_COORDINATOR_ADDRESS)'
    there = ', '.join(
      f'{name}={value}{source if value is address else ""}'
      for name, value in given.items()
      if value is not None
    )
    raise ValueError(
      f'{there}, but no {" and no ".join(missing)}: several processes want all '
      'three, one process none of them'
    )
  else:
    found = Membership(address, _COUNT.value, _INDEX.value)
  return found if found.count > 1 else None


def _detected(address: str | None) -> Membership:
  """Returns what JAX finds out about the cluster.

  JAX offers this only inside `jax.distributed.initialize`, which also connects,
  and aborts the process without a word of ours if that fails. Hence the
  private place; a test reads a SLURM environment through it.
  """
  try:
    clusters = importlib.import_module(_CLUSTERS)
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    found = detect(
      address, None, None, None, None, INITIALIZATION_TIMEOUT.value
    )
    address, count, index = found[:3]
  except (ImportError, AttributeError, TypeError) as error:
    raise ValueError(
      f'--multiprocess does not know this version of JAX ({error}): give '
      '--coordinator_address, --process_count and --process_index instead'
    ) from error
  except (RuntimeError, OSError, KeyError) as error:
    raise ValueError(
      f'--multiprocess: JAX failed to read the cluster: {error}; or give '
      '--coordinator_address, --process_count and --process_index'
    ) from error
  if address is None or count is None or index is None:
    raise ValueError(
      '--multiprocess: JAX finds no TPU pod, SLURM step, Kubernetes job or '
      'Open MPI run here: start the job as the scripts/launch_* do, or give '
      '--coordinator_address, --process_count and --process_index'
    )
  return Membership(address, count, index)

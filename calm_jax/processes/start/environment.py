"""What must be the same in all processes of a job, and is compared first.

Versions, sources, the configuration and the directories are compared over plain
sockets before JAX connects the processes: nothing is compiled for it, and
process 0 can name host and value. (`multihost_utils.assert_equal` would be the
public way through JAX; it runs a program on all devices, which is what must
not be tried before versions agree.) The devices are looked at once JAX has
connected them; every process then sees all of them.
"""

import collections
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import calm_jax
from calm_jax.processes.meeting import (
  Membership,
  Report,
  disagreements,
  not_shared,
)
from calm_jax.records import provenance

# Those of a library that is not installed are left out.
_LIBRARIES = (
  'calm_jax jax jaxlib flax optax orbax-checkpoint numpy gin-config seqio '
  'tensorflow sentencepiece libtpu jax-cuda12-plugin jax-cuda13-plugin'
).split()
# They change what is compiled, and different programs wait for each other.
_VARIABLES = (
  'XLA_FLAGS',
  'LIBTPU_INIT_ARGS',
  'JAX_PLATFORMS',
  'JAX_ENABLE_X64',
  'JAX_DEFAULT_MATMUL_PRECISION',
)


def facts(configuration: str) -> dict[str, str]:
  """Returns what must be the same in all processes.

  Args:
    configuration: the text of the gin configuration.
  """
  versions = provenance.versions(*_LIBRARIES)
  return {
    **{f'version of {name}': value for name, value in versions.items()},
    'the source of calm_jax': source_fingerprint(),
    **{f'${name}': os.environ.get(name, 'unset') for name in _VARIABLES},
    'gin configuration': configuration,
  }


@functools.cache
def source_fingerprint() -> str:
  """Returns a short hash of this package's Python files."""
  folder = pathlib.Path(calm_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(folder.rglob('*.py')):
    digest.update(f'{path.relative_to(folder)}\n'.encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def objections(reports: Sequence[Report]) -> list[str]:
  """Returns what keeps these processes from starting, a line each."""
  return [*disagreements(reports), *not_shared(reports)]


def device_objections(
  membership: Membership, devices: Mapping[int, Sequence[str]]
) -> list[str]:
  """Returns what is wrong with the devices, the same in all processes.

  Args:
    membership: of this process.
    devices: process index -> the kinds of its devices.
  """
  if sorted(devices) != list(range(membership.count)):
    return [
      f'JAX sees devices of the processes {sorted(devices)} of '
      f'{membership.count}: the backend has not joined them; do all hosts have '
      'the same kind of accelerator, and its driver?'
    ]
  holders = collections.defaultdict(list)
  for index, kinds in sorted(devices.items()):
    counted = collections.Counter(kinds)
    said = ' and '.join(f'{n} x {kind}' for kind, n in sorted(counted.items()))
    holders[said].append(index)
  if len(holders) == 1:
    return []
  shown = (f'{said} in {indices}' for said, indices in holders.items())
  return [f'processes have different devices: {"; ".join(shown)}']

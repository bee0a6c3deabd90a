"""How a result came about: versions, machine, command line, time. No JAX."""

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from calm_jax.records.evaluations import RunContext

# What computes, whose versions a result depends on.
LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy', 'calm_jax')


@functools.cache
def versions(*libraries: str) -> dict[str, str]:
  """Returns the versions of Python and of those libraries that are there."""
  found = {'python': platform.python_version()}
  for library in libraries:
    try:
      found[library] = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def run_context(
  *, device: str, dtype: str, libraries: Sequence[str], **other: Any
) -> RunContext:
  """Returns how a result of this process came about.

  Args:
    device: what computed.
    dtype: of what was computed.
    libraries: whose versions matter.
    **other: `seeds` and `details` of `RunContext`.
  """
  now = datetime.datetime.now(datetime.UTC)
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  start = ['python', '-m', spec.name] if spec else sys.argv[:1]
  return RunContext(
    device=device,
    dtype=dtype,
    machine=f'{os.cpu_count()} cores, {platform.machine()}',
    versions=versions(*libraries),
    command=shlex.join([*start, *sys.argv[1:]]),
    created=now.isoformat(timespec='seconds'),
    **other,
  )

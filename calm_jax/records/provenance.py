"""How a result came about: versions, machine, command line, time. No JAX."""

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import sys


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


def of_this_process() -> dict[str, str]:
  """Returns machine, command and time, as `records.RunContext` has them."""
  now = datetime.datetime.now(datetime.UTC)
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  start = ['python', '-m', spec.name] if spec else sys.argv[:1]
  return {
    'machine': f'{os.cpu_count()} cores, {platform.machine()}',
    'command': shlex.join([*start, *sys.argv[1:]]),
    'created': now.isoformat(timespec='seconds'),
  }

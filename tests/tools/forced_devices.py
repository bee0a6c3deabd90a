"""Scripts run with several devices forced on the CPU, in a process each."""

import json
import os
import subprocess
import sys


def run(script, *arguments, devices):
  """Runs a script, and returns the line of JSON that it prints last."""
  flags = f'--xla_force_host_platform_device_count={devices}'
  # They may have to wait for two cores.
  flags += ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
  result = subprocess.run(
    [sys.executable, str(script), *map(str, arguments)],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(sys.path),
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}',
    },
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])

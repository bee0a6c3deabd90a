"""Mains run as a user runs them."""

import subprocess
import sys


def run_main(name, *arguments):
  """Runs calm_jax.cli.<name>; returns its returncode, stdout and stderr."""
  return subprocess.run(
    [sys.executable, '-m', f'calm_jax.cli.{name}', *arguments],
    capture_output=True,
    text=True,
    check=False,
  )

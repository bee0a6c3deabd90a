"""Mains run as a user runs them."""

from tools import import_server


def run_main(name, *arguments):
  """Runs calm_jax.cli.<name>; returns its returncode, stdout and stderr."""
  server = import_server.server(*import_server.OF_MAINS)
  return server.run('-m', f'calm_jax.cli.{name}', *arguments)

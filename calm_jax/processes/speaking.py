"""What a job prints: once, whatever number of processes run it."""

import sys

from calm_jax.processes import collectives


def say(line: str) -> None:
  """Prints a line of progress at once, also into a file; on one process."""
  if collectives.is_main_process():
    print(line, flush=True)


def tell(line: str) -> None:
  """Prints a line beside the output, to stderr."""
  print(line, file=sys.stderr, flush=True)

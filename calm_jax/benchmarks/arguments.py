"""The command lines of the benchmarks: the docstring is the help."""

import argparse
from typing import Any


class Arguments(argparse.ArgumentParser):
  """A parser whose help is a module's docstring and says every default."""

  def __init__(self, name: str, description: str):
    super().__init__(
      prog=f'python -m calm_jax.benchmarks.{name}',
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )

  def add(self, name: str, default: Any, text: str, **keywords: Any) -> None:
    """Adds --name; keywords as for `add_argument`."""
    self.add_argument(
      f'--{name}', default=default, help=f'{text} (%(default)s)', **keywords
    )

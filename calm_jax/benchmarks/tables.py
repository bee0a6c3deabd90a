"""Writes the tables of all READMEs from the JSON files of the benchmarks.

  python -m calm_jax.benchmarks.tables

A README marks the place of a table by its name:

  <!-- table: throughput -->
  <!-- end of table: throughput -->

`calm_jax/benchmarks/registered_tables.py` says which names there are and what
they are made from. Printed is what was written. With --check nothing is
written, and the program fails if any table is not what its JSON says. Needs a
checkout of the repository, and no JAX.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from calm_jax import records
from calm_jax.benchmarks import readme_places, registered_tables
from calm_jax.benchmarks.arguments import Arguments

_RESULTS = pathlib.Path(__file__).parent / 'results'
_ROOT = pathlib.Path(__file__).parents[2]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('tables', __doc__)
  parser.add('root', _ROOT, 'the folder whose READMEs are meant')
  parser.add('results', _RESULTS, 'the folder of the JSON files')
  parser.add_argument(
    '--check',
    action='store_true',
    help='write nothing; fail where a table is not what its JSON says',
  )
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Writes, or checks, and says what."""
  flags = _parse(arguments)
  root, results = pathlib.Path(flags.root), pathlib.Path(flags.results)
  if not (root / 'README.md').exists():
    sys.exit(f'tables: {root} has no README.md; give --root of a checkout')
  content_of = functools.partial(registered_tables.content_of, results=results)
  texts, found = {}, []
  try:
    for path in readme_places.find_readmes(root):
      where = str(path.relative_to(root))
      text, stale = readme_places.fill(
        path.read_text(encoding='utf-8'), where, content_of
      )
      if stale:
        texts[path] = text
        found.append(f'{where}: {", ".join(stale)}')
  except ValueError as error:
    sys.exit(f'tables: {error}')
  if found and flags.check:
    sys.exit(
      'tables: not what the JSON files say; run python -m '
      'calm_jax.benchmarks.tables\n' + '\n'.join(found)
    )
  for path, text in texts.items():
    records.write_text(path, text)
  print('\n'.join(found) or 'all tables are what the JSON files say')


if __name__ == '__main__':
  main()

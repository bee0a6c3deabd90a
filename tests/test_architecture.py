"""Imports go down: the table of who may import whom, and what may load what."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'calm_jax'

# Part of the package -> parts (or modules) of the package it may import.
BASE = {'array_types', 'interfaces', 'pytrees'}
ALLOWED = {
  'array_types': set(),
  'pytrees': set(),
  'interfaces': {'array_types', 'pytrees'},
  'records': set(),
  'processes': set(),
  'tokenizer': set(),
  'sharding': {'array_types'},
  'model': {*BASE, 'sharding'},
  'exits': {*BASE, 'sharding'},
  'decoding': {*BASE, 'exits', 'sharding'},
  'checkpoints': {'array_types', 'model', 'records', 'sharding'},
  'calibration': {'records'},
  'reporting': {'records'},
  'evaluation': {*BASE, 'decoding', 'exits', 'records', 'sharding'},
  'training': {
    *BASE,
    'model',
    'exits',
    'checkpoints',
    'records',
    'sharding',
  },
  'benchmarks': {
    *BASE,
    'model',
    'decoding',
    'exits',
    'sharding',
    'records',
    'reporting',
    'calibration',
    'checkpoints',
    'evaluation',
    'training',
  },
  'data': {'evaluation.corpus_metrics', 'tokenizer'},
  'pipeline': {
    *BASE,
    'decoding',
    'exits',
    'model',
    'checkpoints',
    'tokenizer',
    'calibration',
  },
  'deployment': {*BASE, 'decoding', 'exits', 'checkpoints', 'records'},
  'examples': {*BASE, 'decoding', 'exits', 'model'},
  'cli': None,
  'interop': None,
}
# Third-party module -> the only places that import it.
ONLY_IN = {
  'gin': {'cli/gin_runner.py'},
  'matplotlib': {'reporting'},
  'jinja2': {'reporting'},
  'tensorflow': {'data'},
  'seqio': {'data'},
  'orbax': {'checkpoints', 'sharding/across_processes.py'},
  'sentencepiece': {'tokenizer'},
  't5x': {'interop/t5x.py'},
}


def part_of(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imported_modules(path):
  """Yields every module name a file imports, however deep inside it."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path} has a relative import'
      if node.module == 'calm_jax':
        yield from (f'calm_jax.{alias.name}' for alias in node.names)
      else:
        yield from (f'{node.module}.{alias.name}' for alias in node.names)


FILES = sorted(
  path for path in ROOT.rglob('*.py') if path != ROOT / '__init__.py'
)


@pytest.mark.parametrize(
  'path', FILES, ids=[str(path.relative_to(ROOT)) for path in FILES]
)
def test_imports_go_down(path):
  part = part_of(path)
  allowed = ALLOWED[part]
  for module in imported_modules(path):
    library = module.split('.')[0]
    if library == 'calm_jax':
      name = module.removeprefix('calm_jax.')
      fine = allowed is None or any(
        name == entry or name.startswith(f'{entry}.')
        for entry in {part, *allowed}
      )
      assert fine, f'{path} imports {module}'
    elif library in ONLY_IN:
      place = path.relative_to(ROOT).as_posix()
      assert any(
        place == entry or place.startswith(f'{entry}/')
        for entry in ONLY_IN[library]
      ), f'{path} imports {module}'


def test_every_module_says_what_it_is_for():
  for path in FILES:
    assert ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))), path

"""Imports go down: the table of who may import whom, and what may load what."""

import ast
import functools
import graphlib
import pathlib
import subprocess

import pytest
from tools import paths

ROOT = paths.ROOT / 'calm_jax'

# Room (a part of the package, or of a part) -> rooms or modules it may import.
# A room does not stand for the rooms inside it that have a line of their own.
BASE = {'array_types', 'interfaces', 'pytrees'}
ALLOWED = {
  'array_types': set(),
  'pytrees': set(),
  'interfaces': {'array_types', 'pytrees'},
  'quantisation': {'array_types', 'pytrees'},
  'checks': set(),
  'text_lines': set(),
  'records': set(),
  'tokenizer': set(),
  'processes': set(),
  'processes.meeting': set(),
  'processes.start': {'processes', 'processes.meeting', 'records'},
  'sharding': {'array_types', 'checks'},
  'model': {*BASE, 'checks', 'quantisation', 'sharding'},
  'draft_heads': {*BASE, 'checks'},
  'source_scorer': {*BASE, 'checks'},
  'encoder_heads': {*BASE, 'checks'},
  'source_heads': BASE,
  'label_trees': set(),
  'label_words': {*BASE, 'checks', 'label_trees'},
  'context_gates': {*BASE, 'checks', 'exit_adapters'},
  'exit_adapters': {*BASE, 'checks'},
  'exit_layers': {*BASE, 'exit_adapters'},
  'small_twins': {*BASE, 'checks', 'exit_adapters'},
  'token_router': {*BASE, 'checks', 'exit_adapters'},
  'exits': {*BASE, 'checks', 'sharding'},
  'row_masks': {'array_types'},
  'encoding': {
    *BASE,
    'checks',
    'encoder_heads',
    'exits',
    'row_masks',
    'source_heads',
  },
  'decoding': {
    *BASE,
    'checks',
    'context_gates',
    'draft_heads',
    'encoding',
    'exit_adapters',
    'exits',
    'quantisation',
    'row_masks',
    'sharding',
    'small_twins',
    'source_heads',
    'source_scorer',
    'token_router',
  },
  'costs': {
    'array_types',
    'checks',
    'decoding',
    'interfaces',
    'model',
    'quantisation',
    'sharding',
  },
  'calibration': {'checks', 'records'},
  'reporting': {'records'},
  'checkpoints': {
    'array_types',
    'model',
    'processes',
    'quantisation',
    'records',
    'sharding',
    'tokenizer',
  },
  'evaluation': {
    *BASE,
    'calibration',
    'checks',
    'costs',
    'decoding',
    'exits',
    'processes',
    'quantisation',
    'records',
    'sharding',
    'encoding',
    'encoder_heads',
    'source_heads',
  },
  'data': {'checks', 'text_lines', 'tokenizer'},
  'data.seqio': {'data', 'evaluation.corpus_metrics', 'tokenizer'},
  'training': {
    *BASE,
    'checkpoints',
    'checks',
    'data',
    'draft_heads',
    'encoder_heads',
    'exit_adapters',
    'exit_layers',
    'exits',
    'model',
    'processes',
    'records',
    'sharding',
    'small_twins',
    'tokenizer',
    'source_heads',
    'token_router',
    'source_scorer',
    'context_gates',
  },
  'runs': {
    *BASE,
    'calibration',
    'checkpoints',
    'data.class_labels',
    'decoding',
    'draft_heads',
    'encoder_heads',
    'encoding',
    'exit_adapters',
    'exit_layers',
    'exits',
    'label_words',
    'model',
    'quantisation',
    'records',
    'small_twins',
    'tokenizer',
    'token_router',
    'source_scorer',
    'context_gates',
  },
  'pipeline': {
    *BASE,
    'calibration',
    'checkpoints',
    'checks',
    'decoding',
    'evaluation.losses',
    'evaluation.text_metrics',
    'model',
    'processes',
    'quantisation',
    'records',
    'runs',
    'tokenizer',
  },
  'pipeline.files': {
    'evaluation.decode_progress',
    'pipeline',
    'processes',
    'records',
    'reporting',
    'text_lines',
  },
  'deployment': {
    *BASE,
    'checkpoints',
    'checks',
    'decoding',
    'exits',
    'quantisation',
    'records',
  },
  'examples': {*BASE, 'decoding', 'exits', 'model'},
  'benchmarks': {
    *BASE,
    'calibration',
    'checkpoints',
    'checks',
    'context_gates',
    'costs',
    'data',
    'decoding',
    'draft_heads',
    'exit_adapters',
    'evaluation',
    'exits',
    'model',
    'quantisation',
    'records',
    'reporting',
    'runs',
    'sharding',
    'small_twins',
    'source_scorer',
    'token_router',
    'tokenizer',
    'training',
    'encoding',
  },
  'cli': None,
  'interop': None,
}
# Third-party module -> the only places that import it.
ONLY_IN = {
  'gin': {'cli/gin_runner.py'},
  'matplotlib': {'reporting'},
  'jinja2': {'reporting'},
  'tensorflow': {'data/seqio'},
  'seqio': {'data/seqio'},
  'orbax': {'checkpoints', 'processes/collectives.py'},
  'sentencepiece': {'tokenizer'},
  't5x': {'interop/t5x.py'},
}


def room_of(module):
  """The longest line of the table that a module's name begins with."""
  parts = module.split('.')
  names = ('.'.join(parts[:end]) for end in range(len(parts), 0, -1))
  return next((name for name in names if name in ALLOWED), None)


def may_import(room, module):
  """Whether a room may import a module of calm_jax, named without it."""
  allowed = ALLOWED[room]
  return allowed is None or any(
    module == entry or module.startswith(f'{entry}.')
    for entry in {room, *allowed}
    if entry not in ALLOWED or entry == room_of(module)
  )


@functools.cache
def syntax_tree(path):
  return ast.parse(path.read_text(encoding='utf-8'))


def imported_modules(path):
  """Yields every module name a file imports, however deep inside it."""
  for node in ast.walk(syntax_tree(path)):
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


def test_the_table_has_no_cycle():
  order = graphlib.TopologicalSorter(
    {
      room: {room_of(entry) for entry in allowed or ()}
      for room, allowed in ALLOWED.items()
    }
  )
  assert set(order.static_order()) == set(ALLOWED)


@pytest.mark.parametrize(
  'path', FILES, ids=[str(path.relative_to(ROOT)) for path in FILES]
)
def test_imports_go_down(path):
  place = path.relative_to(ROOT).as_posix()
  here = place.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
  for module in imported_modules(path):
    library, _, name = module.partition('.')
    # `import calm_jax` alone loads nothing of it.
    if library == 'calm_jax' and name:
      assert may_import(room_of(here), name), f'{path} imports {module}'
    elif library in ONLY_IN:
      assert any(
        place == entry or place.startswith(f'{entry}/')
        for entry in ONLY_IN[library]
      ), f'{path} imports {module}'


def test_every_module_says_what_it_is_for():
  for path in FILES:
    assert ast.get_docstring(syntax_tree(path)), path


def test_nothing_else_lies_beside_the_package():
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=paths.ROOT, capture_output=True, text=True
  )
  if listed.returncode:
    pytest.skip('not a git checkout')
  top = {
    pathlib.PurePath(line).parts[0]
    for line in listed.stdout.split('\n')
    if line
  }
  assert {name for name in top if not name.startswith('.')} == {
    *('setup.py', 'calm_jax', 'gin_configs', 'scripts', 'tests'),
    *('README.md', 'LICENSE'),
  }

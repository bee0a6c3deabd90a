"""READMEs: links lead somewhere, snippets and commands name what there is."""

import ast
import functools
import importlib
import re

import pytest
from tools.paths import ROOT

TOP = ROOT / 'README.md'
FOLDERS = sorted(
  {path.parent for path in (ROOT / 'calm_jax').rglob('__init__.py')}
  | {ROOT / name for name in ('gin_configs', 'scripts', 'tests')}
)
READMES = sorted(
  {TOP, *(folder / 'README.md' for folder in FOLDERS)}
  | {ROOT / 'calm_jax' / 'benchmarks' / 'results' / 'README.md'}
)
MOST_LINES = 200
LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
# Snippets that need nothing but the package and run in a second or so.
RUN = (('exits', 0), ('tokenizer', 0))
# Those that take longer, or want TensorFlow.
RUN_SLOWLY = (('.', 0), ('costs', 0), ('data', 0), ('sharding', 0))

in_readmes = pytest.mark.parametrize(
  'readme', READMES, ids=[str(path.relative_to(ROOT)) for path in READMES]
)


@functools.cache
def modules():
  """Returns the files of Python code that are ours."""
  folders = ('calm_jax', 'gin_configs', 'scripts', 'tests')
  return [path for name in folders for path in (ROOT / name).rglob('*.py')]


def text_of(readme):
  return readme.read_text(encoding='utf-8')


def without_code(text):
  return re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)


def snippets(readme, language):
  """Returns the blocks of code of one language."""
  blocks = rf'^```{language}\n(.*?)^```$'
  return re.findall(blocks, text_of(readme), re.MULTILINE | re.DOTALL)


def anchors(readme):
  """Returns what GitHub lets links to a page's headings end in."""
  headings = re.findall(r'^#+ (.+)$', without_code(text_of(readme)), re.M)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


def test_the_top_readme_is_short():
  assert len(text_of(TOP).splitlines()) <= MOST_LINES


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_says_what_it_is_for(folder):
  text = text_of(folder / 'README.md')
  assert text.startswith('# ')
  assert not re.search(r'\bTODO\b|\bFIXME\b', text)


def test_the_top_readme_leads_to_every_other():
  """Through links between READMEs, in whatever many steps."""
  found, queue = set(), [TOP]
  while queue:
    page = queue.pop()
    if page in found:
      continue
    found.add(page)
    for link in LINK.findall(without_code(text_of(page))):
      target = (page.parent / link.split('#')[0]).resolve()
      if target.name == 'README.md':
        queue.append(target)
  assert found == {path.resolve() for path in READMES}


def test_the_top_readme_has_every_job():
  table = text_of(TOP).split('\n| job |')[1].split('\n\n')[0]
  assert sorted(re.findall(r'^\| `(\w+)` \|', table, re.MULTILINE)) == sorted(
    path.stem
    for path in (ROOT / 'calm_jax' / 'cli').glob('*.py')
    if "if __name__ == '__main__'" in text_of(path)
  )


@in_readmes
def test_links_lead_somewhere(readme):
  for link in LINK.findall(without_code(text_of(readme))):
    if '://' in link:
      continue
    path, _, anchor = link.partition('#')
    target = (readme.parent / path).resolve() if path else readme
    assert target.exists(), f'{readme}: {link}'
    assert target.is_relative_to(ROOT), f'{readme}: {link}'
    if anchor:
      assert anchor in anchors(target), f'{readme}: {link}'


@in_readmes
def test_snippets_use_what_there_is(readme):
  """They compile, and every name of a calm_jax module in them exists."""
  for snippet in snippets(readme, 'python'):
    modules = {}
    for node in ast.walk(ast.parse(snippet)):
      if isinstance(node, ast.ImportFrom) and node.module == 'calm_jax':
        for alias in node.names:
          if alias.name == 'data':
            pytest.importorskip('seqio')
          modules[alias.asname or alias.name] = importlib.import_module(
            f'calm_jax.{alias.name}'
          )
    for node in ast.walk(ast.parse(snippet)):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = modules.get(node.value.id)
        assert module is None or hasattr(module, node.attr), (
          f'{readme}: {node.value.id}.{node.attr}'
        )


def run_snippet(folder, number):
  parent = ROOT if folder == '.' else ROOT / 'calm_jax' / folder
  snippet = snippets(parent / 'README.md', 'python')[number]
  # A dataclass looks its module up by this name.
  exec(snippet, {'__name__': '__main__'})


@pytest.mark.parametrize('folder, number', RUN)
def test_a_snippet_runs(folder, number, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run_snippet(folder, number)


@pytest.mark.slow
@pytest.mark.parametrize('folder, number', RUN_SLOWLY)
def test_a_longer_snippet_runs(folder, number, tmp_path, monkeypatch):
  if folder == 'data':
    pytest.importorskip('seqio')
  monkeypatch.chdir(tmp_path)
  run_snippet(folder, number)


@in_readmes
def test_commands_start_what_there_is(readme):
  """Modules and gin files that a page names are those of the package."""
  text = text_of(readme)
  for name in re.findall(r'python -m (calm_jax(?:\.\w+)+)', text):
    path = ROOT / name.replace('.', '/')
    found = path.with_suffix('.py').exists() or path.is_dir()
    assert found, f'{readme}: {name}'
  for name in re.findall(r'--gin_file=((?:\w+/)+\w+\.gin)', text):
    if name.split('/')[0] in ('runs', 'models', 'tasks', 'policies'):
      assert (ROOT / 'gin_configs' / name).exists(), f'{readme}: {name}'
  for name in re.findall(r'`([\w/]+\.py)`', text):
    # One without a folder is in the page's own, or in the one above.
    above = readme.parent if '/' not in name else ROOT
    near = (above.parent / name, ROOT / name)
    found = any(path.exists() for path in near) or any(
      path.match(name) and path.is_relative_to(above) for path in modules()
    )
    assert found, f'{readme}: {name}'
  for name in re.findall(r'\bscripts/\w+\.(?:sh|yaml)', text):
    assert (ROOT / name).exists(), f'{readme}: {name}'

"""What an installed calm_jax holds: all modules, and the files they read."""

import subprocess
import sys

import pytest
from tools.paths import ROOT

pytest.importorskip('setuptools')

# What is read in a clone of the repository and not by the package.
ONLY_IN_CLONES = {'.json', '.md', '.png', '.pyc'}


def files_of(folder):
  return {
    path.relative_to(folder).as_posix()
    for path in folder.rglob('*')
    if path.is_file() and path.suffix not in ONLY_IN_CLONES
  }


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """The files that setup.py would install, below calm_jax."""
  folder = tmp_path_factory.mktemp('build')
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(folder)],
    cwd=ROOT,
    check=True,
  )
  return files_of(folder / 'calm_jax')


def test_everything_in_the_package_is_installed(built):
  assert files_of(ROOT / 'calm_jax') - built == set()


def test_gin_files_and_the_type_marker_come_along(built):
  shipped = files_of(ROOT / 'gin_configs')
  assert {f'gin_configs/{name}' for name in shipped} <= built
  assert {
    'py.typed',
    'reporting/page.html.jinja',
    'reporting/page.css',
  } <= built

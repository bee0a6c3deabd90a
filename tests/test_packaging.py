"""What an installed calm_jax holds besides its modules."""

import subprocess
import sys

import pytest
from tools.paths import ROOT

pytestmark = pytest.mark.skipif(
  not (ROOT / 'setup.py').exists(), reason='an installed package'
)


def test_files_that_are_read_at_run_time_are_installed(tmp_path):
  """Whatever of them no module is: gin files, the template of the page."""
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', f'--build-lib={tmp_path}'],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
  page = ROOT / 'calm_jax' / 'reporting'
  configs = ROOT / 'gin_configs'
  expected = {
    'reporting/page.html.jinja': page / 'page.html.jinja',
    'reporting/page.css': page / 'page.css',
    **{
      f'gin_configs/{path.relative_to(configs)}': path
      for path in configs.rglob('*.gin')
    },
  }
  assert len(expected) > 20
  for name, source in expected.items():
    installed = tmp_path / 'calm_jax' / name
    assert installed.read_bytes() == source.read_bytes(), name

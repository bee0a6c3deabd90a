"""The type checker, as a test: it takes one core while others test."""

import subprocess
import sys

import pytest
from tools.paths import ROOT

# What follows the program's name, here and before every commit.
CHECK = ['--project', '.pyright.json', '--pythonpath']


def test_the_types_are_right():
  checked = subprocess.run(
    [sys.executable, '-m', 'basedpyright', *CHECK, sys.executable],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert checked.returncode == 0, checked.stdout + checked.stderr


def test_commits_are_checked_alike():
  yaml = pytest.importorskip('yaml')
  text = (ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8')
  (repository,) = yaml.safe_load(text)['repos']
  (hook,) = [hook for hook in repository['hooks'] if hook['id'] == 'types']
  program, *flags, python = hook['entry'].split()
  assert (program, python) == ('.venv/bin/basedpyright', '.venv/bin/python')
  assert flags == CHECK

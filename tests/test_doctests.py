"""Runs the examples in docstrings."""

import doctest
import importlib

import pytest
from tools.paths import ROOT

MODULES = sorted(
  '.'.join(path.relative_to(ROOT).with_suffix('').parts)
  for path in (ROOT / 'calm_jax').rglob('*.py')
  if '>>> ' in path.read_text(encoding='utf-8')
)


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
  if name.startswith('calm_jax.data'):
    pytest.importorskip('seqio')
  results = doctest.testmod(importlib.import_module(name))
  assert results.attempted and not results.failed

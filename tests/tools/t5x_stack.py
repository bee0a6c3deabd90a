"""Finds T5X on the Python path, for tests that run inside it.

T5X is on no index: calm_jax/interop/README.md says what has to be on the path.
"""

import importlib.util

import pytest


def skip_without(*packages):
  """Skips the calling test module unless every package can be found."""
  lacking = [
    name for name in packages if importlib.util.find_spec(name) is None
  ]
  if lacking:
    pytest.skip(
      f'not on the Python path: {", ".join(lacking)} '
      '(calm_jax/interop/README.md)',
      allow_module_level=True,
    )

"""Settings of the whole suite, made before anything loads JAX."""

import gc
import importlib.metadata
import os
import pathlib
import sys

import pytest

# Tiny programs that run once: compiling them is what takes time, and these make
# it up to three times as fast. Flags set by the caller win; with XLA_FLAGS=
# (empty) programs are compiled as users compile them.
_COMPILE_FAST = [
  # Nothing is optimised by LLVM.
  '--xla_backend_optimization_level=0',
  # A program is one LLVM module, not up to 32 to be compiled side by side.
  '--xla_cpu_parallel_codegen_split_count=1',
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # Loops are written as LLVM's code right away, not as MLIR first. Later ones
  # have no such flag, and end at flags that they do not know.
  _COMPILE_FAST.append('--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('XLA_FLAGS', ' '.join(_COMPILE_FAST))
# Quiet, and the same on a machine that has an accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Linux gives a process 65,530 of them; where one more is asked for while XLA
# compiles, the process dies of a segmentation fault.
_MOST_MAPPINGS = 30_000

# Files that take longest, in the order in which they are started: so that no
# process is left with a long one while the others have nothing to do.
_FIRST = (
  'cli/test_generate.py',
  'test_types.py',
  'decoding/test_policy_laws.py',
)


def pytest_collection_modifyitems(items):
  """Puts the longest files first; pytest-xdist hands files out in order."""
  tests = pathlib.Path(__file__).parent
  rank = {tests / name: place for place, name in enumerate(_FIRST)}
  items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Lets go of compiled programs, some mappings each, when there are many."""
  yield
  mappings = pathlib.Path('/proc/self/maps')
  if 'jax' not in sys.modules or not mappings.exists():
    return
  if mappings.read_bytes().count(b'\n') > _MOST_MAPPINGS:
    sys.modules['jax'].clear_caches()
    gc.collect()

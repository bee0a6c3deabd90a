"""The fences: what each part of the package may load, in fresh processes."""

import pathlib

import pytest
from tools import import_server

import calm_jax

HEAVY = ('tensorflow', 'seqio', 'gin', 't5x', 'torch', 'transformers', 'clu')
FENCES = {
  'calm_jax': (*HEAVY, 'jax', 'numpy'),
  'calm_jax.calibration': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.reporting': (*HEAVY, 'jax'),
  'calm_jax.processes': (*HEAVY, 'jax', 'numpy'),
  # Jobs for a laptop on which JAX is not installed.
  'calm_jax.cli.monitor': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.cli.report': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.cli.validate': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.cli.convert': (*HEAVY, 'matplotlib', 'safetensors'),
  # Decoding needs gin here, and no data set.
  'calm_jax.cli.generate': (*set(HEAVY) - {'gin'}, 'matplotlib'),
  'calm_jax.benchmarks': (*HEAVY, 'matplotlib'),
  'calm_jax.benchmarks.calibration_power': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.benchmarks.tables': (*HEAVY, 'jax', 'matplotlib'),
  **{
    f'calm_jax.{name}': (*HEAVY, 'matplotlib')
    for name in (
      'interfaces exits decoding model training evaluation checkpoints'
      ' pipeline tokenizer deployment'
    ).split()
  },
}


def python_behind(fence):
  """A Python that has loaded much, but nothing that the fence keeps out."""
  libraries = ()
  if 'jax' not in fence:
    libraries = [name for name in import_server.OF_MAINS if name != 'gin']
  elif 'numpy' not in fence:
    libraries = ('absl.app', 'scipy.stats')
  return import_server.server(*libraries)


def modules_behind():
  """Fence -> the modules that it is around."""
  found = {}
  for module, fence in FENCES.items():
    found.setdefault(frozenset(fence), []).append(module)
  return found


@pytest.mark.parametrize(
  'fence',
  [pytest.param(fence, id=of[0]) for fence, of in modules_behind().items()],
)
def test_fence(fence):
  """One after the other in one process: what all keep out, each keeps out."""
  modules = modules_behind()[fence]
  program = (
    'import importlib, sys\n'
    f'for name in {modules}:\n'
    '  importlib.import_module(name)\n'
    f'  loaded = sorted({set(fence)} & set(sys.modules))\n'
    "  assert not loaded, f'{name} loads {loaded}'\n"
  )
  result = python_behind(fence).run('-c', program)
  assert not result.returncode, result.stderr


def test_every_name_of_the_package_is_there():
  folder = pathlib.Path(calm_jax.__file__).parent
  for name in set(calm_jax.__all__) - {'__version__', 'load'}:
    places = (folder / f'{name}.py', folder / name / '__init__.py')
    assert any(place.exists() for place in places), name


def test_subpackages_load_when_named():
  program = 'import calm_jax; print(calm_jax.calibration.hoeffding.__name__)'
  result = import_server.server().run('-c', program)
  assert result.stdout.strip() == 'hoeffding'


def test_load_is_that_of_the_pipeline():
  from calm_jax import load, pipeline

  assert load is pipeline.load

"""The fences: what each part of the package may load, in fresh processes."""

import pathlib
import subprocess
import sys

import pytest

import calm_jax

HEAVY = ('tensorflow', 'seqio', 'gin', 't5x', 'torch', 'transformers', 'clu')
FENCES = {
  'calm_jax': (*HEAVY, 'jax', 'numpy'),
  'calm_jax.calibration': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.reporting': (*HEAVY, 'jax'),
  'calm_jax.processes': (*HEAVY, 'jax', 'numpy'),
  # Jobs for a laptop on which JAX is not installed.
  'calm_jax.cli.report': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.cli.validate': (*HEAVY, 'jax', 'matplotlib'),
  'calm_jax.cli.convert': (*HEAVY, 'matplotlib', 'safetensors'),
  # Decoding needs gin here, and no data set.
  'calm_jax.cli.generate': (*set(HEAVY) - {'gin'}, 'matplotlib'),
  'calm_jax.benchmarks': (*HEAVY, 'matplotlib'),
  'calm_jax.benchmarks.calibration_power': (*HEAVY, 'jax', 'matplotlib'),
  **{
    f'calm_jax.{name}': (*HEAVY, 'matplotlib')
    for name in (
      'interfaces exits decoding model training evaluation checkpoints'
      ' pipeline tokenizer deployment'
    ).split()
  },
}


@pytest.mark.parametrize('module', FENCES)
def test_fence(module):
  program = f'import sys, {module}; print(*sys.modules)'
  loaded = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  ).stdout.split()
  assert not sorted(set(FENCES[module]) & set(loaded))


def test_every_name_of_the_package_is_there():
  folder = pathlib.Path(calm_jax.__file__).parent
  for name in set(calm_jax.__all__) - {'__version__', 'load'}:
    places = (folder / f'{name}.py', folder / name / '__init__.py')
    assert any(place.exists() for place in places), name


def test_subpackages_load_when_named():
  program = 'import calm_jax; print(calm_jax.calibration.hoeffding.__name__)'
  result = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == 'hoeffding'


def test_load_is_that_of_the_pipeline():
  from calm_jax import load, pipeline

  assert load is pipeline.load

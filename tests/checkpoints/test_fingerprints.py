import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax.checkpoints import parameter_fingerprint


def tree(seed=0):
  random = np.random.default_rng(seed)
  return {
    'decoder': {'kernel': random.normal(size=(6, 4)).astype(np.float32)},
    'scale': random.normal(size=(4,)).astype(np.float32),
  }


def test_equal_values_have_equal_fingerprints():
  params = tree()
  reference = parameter_fingerprint(params)
  assert len(reference) == 32 and int(reference, 16) >= 0
  assert parameter_fingerprint(jax.tree.map(jnp.asarray, params)) == reference
  reordered = {'scale': params['scale'], 'decoder': params['decoder']}
  assert parameter_fingerprint(reordered) == reference
  fortran = jax.tree.map(np.asfortranarray, params)
  assert parameter_fingerprint(fortran) == reference


def test_the_dtype_that_holds_the_values_does_not_matter():
  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree())
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
  assert parameter_fingerprint(half) == parameter_fingerprint(wide)
  assert parameter_fingerprint(half) != parameter_fingerprint(tree())


SHARDED = """
  import jax, numpy as np
  from jax.sharding import AxisType, NamedSharding, PartitionSpec
  from calm_jax.checkpoints import parameter_fingerprint
  mesh = jax.make_mesh((2, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  kernel = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  for spec in (PartitionSpec(), PartitionSpec('a', 'b'), PartitionSpec('b')):
    array = jax.device_put(kernel, NamedSharding(mesh, spec))
    print(parameter_fingerprint({'kernel': array}))
  print(parameter_fingerprint({'kernel': kernel}))
"""


@pytest.mark.slow
def test_sharding_does_not_matter():
  result = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(SHARDED)],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(sys.path),
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  lines = result.stdout.split()
  assert len(lines) == 4 and len(set(lines)) == 1


def test_every_change_shows():
  params = tree()
  seen = {parameter_fingerprint(params)}

  def changed(name, function):
    new = tree()
    new['decoder']['kernel'] = np.array(function(new['decoder']['kernel']))
    fingerprint = parameter_fingerprint(new)
    assert fingerprint not in seen, name
    seen.add(fingerprint)

  def nudge(row, column):
    def function(kernel):
      kernel[row, column] = np.nextafter(kernel[row, column], np.float32(9))
      return kernel

    return function

  for row in range(6):
    for column in range(4):
      changed('the last bit of one value', nudge(row, column))
  changed('two rows swapped', lambda kernel: kernel[[1, 0, 2, 3, 4, 5]])
  changed('reversed', lambda kernel: kernel[::-1, ::-1])
  changed('another shape', lambda kernel: kernel.reshape(4, 6))
  changed('transposed', lambda kernel: kernel.T)
  changed('a sign', lambda kernel: kernel * np.float32(-1))
  renamed = {'encoder': params['decoder'], 'scale': params['scale']}
  assert parameter_fingerprint(renamed) not in seen


def test_random_trees_do_not_collide():
  assert len({parameter_fingerprint(tree(seed)) for seed in range(50)}) == 50


def test_a_tree_without_arrays_has_none():
  with pytest.raises(ValueError, match='no fingerprint'):
    parameter_fingerprint({})

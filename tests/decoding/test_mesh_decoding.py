"""Decoding over meshes of four forced devices, in a process of its own."""

import jax
import numpy as np
import pytest
from cases import policy_cases as cases
from tools import forced_devices
from tools.paths import PROGRAMS

from calm_jax import decoding, sharding

SCRIPT = PROGRAMS / 'mesh_decoding.py'


def run_script(*arguments):
  return forced_devices.run(SCRIPT, *arguments, devices=4)


def check(found):
  """What holds for every case, loop and mesh."""
  assert found
  for name, entry in found.items():
    by_number = any(
      readout in name
      for readout in ('pruned', 'streamed', 'first_tokens', 'int8_checks')
    )
    # Positions of sources and of caches are nobody's share.
    by_number &= 'pruned_source' not in name and 'pruned_context' not in name
    if by_number and entry['mesh'] == [2, 2]:
      assert 'of the output matrix by number' in entry['refused'], name
      continue
    assert entry['equal'], name
    assert 'inputs cannot be shared evenly' in entry['uneven'], name
    assert entry['rows'] == "P('data',)", name
    if entry['mesh'] == [4, 1]:
      assert not entry['collectives'], name
    else:
      # Devices 0 and 1 share rows, and so do 2 and 3; no pair says anything to
      # the other.
      assert set(entry['collectives']) <= {'all-reduce', 'all-gather'}, name
      assert entry['groups'] == [[[0, 1], [2, 3]]], name
      assert entry['heads'] == 'model', name


@pytest.mark.slow
def test_every_part_of_a_mesh_shrinks_by_itself():
  check(run_script('shrinking_by_2', 'full', 'margin_prefix_suppressed_exact'))


@pytest.mark.slow
def test_rows_decode_by_themselves_and_equal_one_device():
  found = run_script('while', 'maximum_release_decay')
  check(found)
  # The 2 x 2 mesh is worth its name: one group has decoded more than the other.
  entry = next(e for e in found.values() if e['mesh'] == [2, 2])
  assert entry['trips'][0] != entry['trips'][1]


@pytest.mark.slow
@pytest.mark.parametrize('name', cases.NAMES)
def test_every_policy_decodes_on_meshes(name):
  check(run_script('while,unrolled,compacting', name))


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['softmax_margin', 'state_similarity_per_row_exact']
)
def test_a_model_in_8_bits_decodes_on_meshes(name):
  check(run_script('int8', 'while,unrolled', name))


def mesh_of(data):
  return sharding.make_mesh(data=data, devices=jax.devices()[:data])


def start(mesh, inputs=None):
  return decoding.start(
    cases.bound(decoding.UnrolledDepthLoop(), mesh),
    cases.inputs() if inputs is None else inputs,
    max_length=cases.T,
    eos_id=cases.EOS_ID,
  )


def test_a_mesh_of_one_device_changes_nothing():
  result = cases.host(decoding.finish(decoding.advance(start(mesh_of(1)))))
  expected = cases.decode('full')
  np.testing.assert_array_equal(result.tokens, expected.tokens)


def test_meshes_that_do_not_fit_are_refused():
  explicit = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  with pytest.raises(ValueError, match='sharding.make_mesh'):
    start(explicit)
  with pytest.raises(ValueError, match='got 4'):
    start(4)


def test_a_decode_on_a_mesh_takes_no_rows_of_one_that_is_not():
  state, new = start(mesh_of(1)), start(None)
  with pytest.raises(ValueError, match='differ in mesh'):
    decoding.refill(state, np.array([0]), new)

"""Bound decoders: what is prepared once, and who may carry it."""

import jax
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy

from calm_jax import decoding, exits, sharding

INPUTS = np.array([[1, 2], [2, 0]])
WHILE = decoding.WhileDepthLoop()


def decode(bound, threshold=0.6):
  return decoding.generate(
    bound,
    INPUTS,
    policy=exits.ConfidenceExit(exits.SoftmaxMargin(), threshold),
    max_length=4,
    eos_id=-1,
  )


def test_parameters_are_the_leaves_and_all_else_is_structure():
  bound = cases.bound(WHILE)
  leaves = jax.tree.leaves(bound)
  prepared = jax.tree.leaves(cases.prepared(True))
  assert all(a is b for a, b in zip(leaves, prepared, strict=True))
  structures = {
    jax.tree.structure(bound),
    jax.tree.structure(cases.bound(WHILE)),
    jax.tree.structure(cases.bound(decoding.CompactingDepthLoop())),
  }
  assert len(structures) == 2


def test_parameters_are_laid_out_for_the_depth_loop():
  for loop in decoding.DEPTH_LOOPS.values():
    bound = decoding.bind(cases.decoder(), cases.params(), depth_loop=loop)
    assert bound.params.traced_layers == loop.traced_layers
    again = decoding.bind(bound.decoder, bound.params)
    assert again.params is bound.params
    assert again.depth_loop.traced_layers == loop.traced_layers


def test_it_is_an_argument_of_any_program():
  inside = jax.jit(decode)
  bound = toy.toy_bound(depth_loop=WHILE)
  found, wanted = inside(bound, 0.6), decode(bound, 0.6)
  np.testing.assert_array_equal(found.tokens, wanted.tokens)
  np.testing.assert_array_equal(found.exit_layers, wanted.exit_layers)
  inside(toy.toy_bound(depth_loop=WHILE), 0.3)
  # One program for equal decoders, whatever the parameters and the threshold.
  assert inside._cache_size() == 1


def test_shapes_can_be_bound():
  shapes = jax.eval_shape(cases.params)
  bound = decoding.bind(cases.decoder(), shapes, depth_loop=WHILE)
  wanted = jax.tree.map(lambda leaf: leaf.shape, cases.bound(WHILE))
  assert jax.tree.map(lambda leaf: leaf.shape, bound) == wanted
  inside = jax.eval_shape(
    lambda params: decoding.bind(cases.decoder(), params, depth_loop=WHILE),
    shapes,
  )
  assert jax.tree.structure(inside) == jax.tree.structure(bound)


def test_parameters_lie_on_the_mesh():
  mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
  bound = cases.bound(WHILE, mesh)
  for leaf in jax.tree.leaves(bound):
    assert leaf.sharding.mesh == mesh
  again = decoding.bind(
    bound.decoder, bound.params, depth_loop=WHILE, mesh=mesh
  )
  pairs = zip(jax.tree.leaves(bound), jax.tree.leaves(again), strict=True)
  assert all(a is b for a, b in pairs), 'laid out a second time'


def test_what_cannot_be_bound_or_is_not_is_refused():
  bound = toy.toy_bound()
  with pytest.raises(TypeError, match='is bound already'):
    decoding.bind(bound, bound.params)
  with pytest.raises(ValueError, match='sharding.make_mesh'):
    toy.toy_bound(mesh=4)
  with pytest.raises(TypeError, match=r'got LayeredDecoder; .*decoding\.bind'):
    decode(toy.toy_decoder())
  with pytest.raises(ValueError, match='bound to none'):
    decoding.compile_decode(bound, batch_size=1, source_length=2, max_length=4)

"""T5's parameters in 8 bits: which matrices, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, model, quantisation
from calm_jax.quantisation import Int8Weights

TIED = dataclasses.replace(
  cases.CONFIG, tied_embeddings=True, mlp_activations=('relu',)
)


def _paths(tree):
  nodes = jax.tree.leaves_with_path(tree, is_leaf=quantisation.is_quantised)
  return {
    jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    for path, node in nodes
    if quantisation.is_quantised(node)
  }


def _quantised(config=cases.CONFIG, **weights):
  params = cases.params()
  if config is TIED:
    params = model.init_params(TIED, jax.random.key(0))
  decoder = model.as_layered_decoder(config)
  return params, decoder.quantise(params, Int8Weights(**weights))


@pytest.mark.parametrize('config', [cases.CONFIG, TIED], ids=['untied', 'tied'])
@pytest.mark.parametrize('encoder', [False, True])
def test_all_matrices_are_taken(config, encoder):
  params, tree = _quantised(config, encoder=encoder)
  found = _paths(tree)
  assert 'decoder/logits_dense' in found
  assert 'decoder/layers_3/encoder_decoder_attention/key' in found
  assert any(path.startswith('encoder/') for path in found) == encoder
  floats = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree.leaves_with_path(tree)
    if leaf.ndim == 2 and leaf.dtype == np.float32 and 'scales' not in str(path)
  }
  left = {path for path in floats if not path.startswith('encoder/layers')}
  assert left == {
    'token_embedder/embedding',
    'encoder/relpos_bias/rel_embedding',
    'decoder/relpos_bias/rel_embedding',
  }
  np.testing.assert_array_equal(
    tree['token_embedder']['embedding'], params['token_embedder']['embedding']
  )


@pytest.mark.slow
@pytest.mark.parametrize('config', [cases.CONFIG, TIED], ids=['untied', 'tied'])
def test_the_model_is_near_the_float_one(config):
  params, tree = _quantised(config)
  tokens = np.random.default_rng(0).integers(2, cases.V, (2, 7))
  ran = np.ones((2, 7, cases.L), bool)
  one, other = (
    np.asarray(model.decode_with_layer_mask(config, p, tokens, tokens, ran))
    for p in (params, tree)
  )
  error = np.linalg.norm(one - other) / np.linalg.norm(one)
  assert 1e-4 < error < 0.06


def test_layers_may_be_kept_in_float():
  kept = r'.*/mlp/wi_0', 'decoder/layers_2/.*'
  _, tree = _quantised(keep=kept)
  found = _paths(tree)
  assert not any(path.endswith('wi_0') for path in found)
  assert not any(path.startswith('decoder/layers_2/') for path in found)
  assert 'decoder/layers_1/mlp/wi_1' in found
  result = decoding.generate(
    decoding.bind(
      cases.decoder(),
      cases.params(),
      depth_loop=decoding.UnrolledDepthLoop(),
      weights=Int8Weights(keep=kept),
    ),
    cases.inputs(),
    max_length=4,
  )
  assert np.isfinite(result.scores).all()
  with pytest.raises(ValueError, match='stacks all layers.*UnrolledDepthLoop'):
    cases.decoder().prepare(tree, traced_layers=True)


def test_quantising_twice_is_quantising_once():
  _, tree = _quantised()
  again = cases.decoder().quantise(tree, Int8Weights())
  assert jax.tree.structure(again) == jax.tree.structure(tree)
  for one, other in zip(
    jax.tree.leaves(again), jax.tree.leaves(tree), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_numbers_that_are_not_finite_are_refused():
  params = jax.tree.map(np.array, cases.params())
  params['decoder']['layers_1']['mlp']['wo']['kernel'][3, 2] = np.inf
  with pytest.raises(ValueError, match=r'decoder/layers_1/mlp/wo holds.*keep='):
    decoding.bind(cases.decoder(), params, weights='int8')
  kept = Int8Weights(keep=('decoder/layers_1/mlp/wo',))
  decoding.bind(
    cases.decoder(),
    params,
    weights=kept,
    depth_loop=decoding.UnrolledDepthLoop(),
  )


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    ('int4', "weights is 'int4'; give 'float', 'int8' or"),
    (8, 'weights is 8; give'),
    (Int8Weights(keep='.*/wo'), r"give a tuple of expressions: \('.\*/wo',\)"),
    (Int8Weights(keep=('(',)), 'is no regular expression'),
    (Int8Weights(keep=('.*/wq',)), "'.*/wq', which matches no matrix; there"),
  ],
)
def test_other_weights_are_refused(weights, message):
  with pytest.raises(ValueError, match=message):
    decoding.bind(cases.decoder(), cases.params(), weights=weights)


def test_a_decoder_that_cannot_is_refused():
  decoder = dataclasses.replace(cases.decoder(), quantise=None)
  with pytest.raises(ValueError, match='no function `quantise`'):
    decoding.bind(decoder, cases.params(), weights='int8')


def test_parameters_in_8_bits_do_not_pass_for_float_ones():
  _, tree = _quantised()
  with pytest.raises(ValueError, match="weights='int8'"):
    decoding.bind(cases.decoder(), tree)
  one = decoding.bind(cases.decoder(), tree, weights='int8')
  other = decoding.bind(cases.decoder(), cases.params(), weights='int8')
  assert jax.tree.structure(one) == jax.tree.structure(other)


def test_shapes_are_enough():
  shapes = jax.eval_shape(lambda: cases.params())
  bound = decoding.bind(cases.decoder(), shapes, weights='int8')
  wanted = decoding.bind(cases.decoder(), cases.params(), weights='int8')
  assert jax.tree.map(lambda leaf: leaf.shape, bound.params) == jax.tree.map(
    lambda leaf: leaf.shape, wanted.params
  )


def test_parameters_that_a_program_holds_are_quantised_too():
  shapes = jax.eval_shape(
    lambda: decoding.bind(cases.decoder(), cases.params(), weights='int8')
  )
  assert shapes.params.output.values.dtype == np.int8


def test_weights_are_read_as_they_were_described():
  for weights in (None, Int8Weights(), Int8Weights(encoder=True, keep=('a',))):
    described = quantisation.describe_weights(weights)
    assert quantisation.as_weights(described) == weights

"""Models of some decoder layers: the depths of one pass, and layers skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax import decoding, model

L = 3
V1_1 = model.T5Config(
  vocab_size=24,
  embed_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=L,
)
CONFIGS = {
  'v1.1': V1_1,
  'v1.0': dataclasses.replace(
    V1_1, mlp_activations=('relu',), tied_embeddings=True
  ),
}
RNG = np.random.default_rng(0)
INPUTS = RNG.integers(2, 24, (2, 5))
TARGETS = RNG.integers(2, 24, (2, 4))
TOKENS = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]


def random_params(config):
  """Returns parameters drawn by NumPy: nothing is compiled for them."""
  shapes = jax.eval_shape(
    lambda key: model.init_params(config, key), jax.random.key(0)
  )
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: rng.normal(0.5, 0.3, leaf.shape).astype(np.float32), shapes
  )


@jax.jit(static_argnums=0)
def depth_logits(config, params):
  """What every depth says, of one joint pass: [L, B, T, V]."""
  states = model.layer_states(config, params, INPUTS, TOKENS)
  return model.output_logits(config, params, states)


def losses_by_depth(config, params):
  """The mean cross entropy after every layer, [L]."""
  logits = np.asarray(depth_logits(config, params), np.float64)
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  picked = np.take_along_axis(logits, TARGETS[None, ..., None], -1)
  return -picked.mean((1, 2, 3))


@jax.jit(static_argnums=0)
def masked_logits(config, params, mask):
  mask = jnp.broadcast_to(mask, (*TOKENS.shape, L))
  return model.decode_with_layer_mask(config, params, INPUTS, TOKENS, mask)


@pytest.fixture(
  scope='module',
  params=['v1.1', pytest.param('v1.0', marks=pytest.mark.slow)],
)
def trained(request):
  config = CONFIGS[request.param]
  return config, random_params(config)


def test_depths_of_one_pass_are_models_of_the_first_layers(trained):
  config, params = trained
  expected = losses_by_depth(config, params)
  assert len(set(np.asarray(expected).round(4))) == L
  for number in range(1, L + 1):
    smaller = model.truncate(config, params, number)
    assert smaller[0].num_decoder_layers == number
    last = losses_by_depth(*smaller)[-1]
    np.testing.assert_allclose(last, expected[number - 1], rtol=1e-6)


@pytest.mark.parametrize(
  'kept',
  [
    (0, 2),
    pytest.param((1,), marks=pytest.mark.slow),
    pytest.param((1, 2), marks=pytest.mark.slow),
  ],
)
def test_other_layers_are_a_layer_mask(kept):
  config = CONFIGS['v1.1']
  params = random_params(config)
  mask = np.isin(np.arange(L), kept)
  np.testing.assert_allclose(
    depth_logits(*model.truncate(config, params, kept))[-1],
    masked_logits(config, params, mask),
    atol=1e-5,
  )


def test_all_layers_are_the_same_model_and_nothing_is_copied(trained):
  config, params = trained
  for layers in (L, range(L), np.arange(L)):
    same, cut = model.truncate(config, params, layers)
    assert same == config
    assert jax.tree.structure(cut) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(cut), jax.tree.leaves(params), strict=True)
    assert all(one is other for one, other in pairs)
  _, cut = model.truncate(config, params, [1, 2])
  decoder = params['decoder']
  assert [*cut['decoder']] != [*decoder]
  kernel = cut['decoder']['layers_0']['mlp']['wo']['kernel']
  assert kernel is decoder['layers_1']['mlp']['wo']['kernel']
  assert cut['decoder']['relpos_bias'] is decoder['relpos_bias']
  # What was given stays as it was.
  assert sum(name.startswith('layers_') for name in decoder) == L


@pytest.mark.parametrize(
  ('layers', 'error', 'message'),
  [
    (0, ValueError, r'layers 0 must be a whole number in 1\.\.3'),
    (4, ValueError, r'layers 4 must be .* in 1\.\.3'),
    (True, ValueError, 'layers True'),
    (1.5, ValueError, r'layers 1\.5'),
    ([], ValueError, 'layers is empty'),
    ([0, 3], ValueError, r'layer 3 must be .* in 0\.\.2'),
    ([-1], ValueError, 'layer -1'),
    ([0.0], ValueError, r'layer 0\.0'),
    ([1, 1, 2], ValueError, r'\[1, 1, 2\] must rise.*give \[1, 2\]'),
    ([2, 0], ValueError, r'\[2, 0\] must rise.*give \[0, 2\]'),
    (np.array([True, False, True]), ValueError, r'np\.flatnonzero'),
    (np.int32(7), ValueError, r'in 1\.\.3'),
    (np.array(7), ValueError, r'7.* must be .* in 1\.\.3'),
    (jnp.int32(7), ValueError, r'7.* must be .* in 1\.\.3'),
    ('12', TypeError, "layers is '12'"),
    (None, TypeError, 'layers is None'),
  ],
)
def test_bad_layers_are_named(layers, error, message):
  config = CONFIGS['v1.1']
  with pytest.raises(error, match=message):
    model.truncate(config, {'decoder': {}}, layers)


def test_parameters_that_do_not_go_with_it_are_refused():
  config = CONFIGS['v1.1']
  params = random_params(config)
  _, cut = model.truncate(config, params, 2)
  with pytest.raises(ValueError, match=r"'layers_1'\], .* there are 3"):
    model.truncate(config, cut, 1)
  with pytest.raises(ValueError, match='have encoder and no decoder'):
    model.truncate(config, {'encoder': params['encoder']}, 1)
  bound = decoding.bind(model.as_layered_decoder(config), params)
  with pytest.raises(TypeError, match='truncate the original tree'):
    model.truncate(config, bound.params, 1)

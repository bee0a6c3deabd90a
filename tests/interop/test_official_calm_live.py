"""The official CALM, run beside ours on random models: equal token by token.

t5x/contrib/calm with Flaxformer's network at batch 1, as it works, against
`EarlyExitModel` with the release's own propagation. Models differ in size and
seed from the one of the golden arrays. Prints how close a tie came.
"""

import importlib.util
import pathlib
import types

import jax
import numpy as np
import pytest
from tools import t5x_stack

t5x_stack.skip_without('t5x', 'airio', 'jestimator', 'flaxformer', 'aqt')

import gin
from t5x.contrib.calm import models as calm_models
from t5x.examples.t5 import network

from calm_jax import decoding, exits
from calm_jax.interop import t5x as calm_t5x

LENGTH = 12
VOCABULARY = types.SimpleNamespace(eos_id=1)
SIZES = {
  'four_layers': dict(
    vocab_size=96,
    emb_dim=24,
    num_heads=3,
    head_dim=8,
    mlp_dim=40,
    num_encoder_layers=1,
    num_decoder_layers=4,
  ),
  'six_layers': dict(
    vocab_size=150,
    emb_dim=24,
    num_heads=2,
    head_dim=16,
    mlp_dim=64,
    num_encoder_layers=3,
    num_decoder_layers=6,
  ),
}
METHODS = {
  'softmax_diff': (0.1, 0.35, 0.7),
  'softmax_max': (0.2, 0.4, 0.7),
  'state': (0.7, 0.8, 0.9),
  'meta': (0.3, 0.6, 0.9),
}


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def official_network(sizes):
  """Builds Flaxformer's network by the release's own gin file.

  Its parts are made when it is applied, so the bindings have to stay.
  """
  spec = importlib.util.find_spec('flaxformer')
  path = pathlib.Path(spec.submodule_search_locations[0]) / (
    't5x/configs/calm/architectures/calm_metacls_t5_1_1_flaxformer.gin'
  )
  names = dict(
    NUM_EMBEDDINGS='vocab_size',
    EMBED_DIM='emb_dim',
    NUM_HEADS='num_heads',
    HEAD_DIM='head_dim',
    MLP_DIM='mlp_dim',
    NUM_ENCODER_LAYERS='num_encoder_layers',
    NUM_DECODER_LAYERS='num_decoder_layers',
  )
  gin.clear_config()
  gin.parse_config_file(str(path))
  gin.parse_config(
    [
      *(f'{macro} = {sizes[name]}' for macro, name in names.items()),
      'FIRST_EXIT = 0',
      'EXIT_INTERVAL = 1',
      'RETURN_ALL_LOGITS = False',
      "ACTIVATION_DTYPE = 'float32'",
    ]
  )
  return gin.config.query_parameter('%ARCHITECTURE').scoped_configurable_fn()


def model_of(size):
  """Returns the official network, its random parameters and inputs [4, 9]."""
  sizes = SIZES[size]
  module = official_network(sizes)
  model = calm_models.EncoderDecoderModel(module, VOCABULARY, VOCABULARY, None)
  names = ('encoder_input_tokens', 'decoder_input_tokens')
  shapes = dict.fromkeys(names, (1, LENGTH))
  types_of = dict.fromkeys(shapes, 'int32')
  variables = jax.jit(
    lambda key: model.get_initial_variables(key, shapes, types_of)
  )(jax.random.key(len(size)))
  params = jax.tree.map(np.array, _unfrozen(variables['params']))
  # Fresh logits are nearly flat: sharper ones make confidences differ.
  params['decoder']['logits_dense']['kernel'] *= 4
  inputs = np.random.default_rng(7).integers(
    2, sizes['vocab_size'], (4, 9), dtype=np.int32
  )
  inputs[1, 6:] = 0
  inputs[3, 3:] = 0
  return module, params, inputs


def batch_of(inputs):
  return {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': np.zeros((len(inputs), LENGTH), np.int32),
  }


def official_decoder(size, method, module, params):
  """Returns `(row, threshold) -> tokens, exits, confidences` of the release."""

  @jax.jit
  def decode(inputs, threshold):
    model = calm_models.EncoderDecoderModel(
      module,
      VOCABULARY,
      VOCABULARY,
      None,
      apply_early_inference=True,
      decoder_layers=SIZES[size]['num_decoder_layers'],
      conf_method=method,
      conf_threshold=threshold,
    )
    tokens, aux = model.predict_batch_with_aux(params, batch_of(inputs))
    return tokens, aux['exits'], aux['confidences']

  return decode


def our_decoder(size, method, params):
  """Returns the same of ours, for the whole batch."""
  decoder = dict(params['decoder'])
  classifier = decoder.pop('meta_cls')
  params = {**params, 'decoder': decoder}
  kernel, bias = classifier['kernel'], classifier['bias']
  measure = {
    'softmax_diff': exits.SoftmaxMargin(),
    'softmax_max': exits.SoftmaxMaximum(),
    'state': exits.StateSimilarity(),
    'meta': exits.Classifier(kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]),
  }[method]

  @jax.jit
  def decode(inputs, threshold):
    model = calm_t5x.EarlyExitModel(
      network.Transformer(
        network.T5Config(**SIZES[size], mlp_activations=('gelu', 'linear'))
      ),
      VOCABULARY,
      VOCABULARY,
      None,
      policy=decoding.ComputePolicy(
        cache_fill=decoding.ProjectFirstExitState(),
        exit_rule=exits.ConfidenceExit(measure, threshold),
      ),
    )
    tokens, aux = model.predict_batch_with_aux(params, batch_of(inputs))
    return tokens, aux['exit_layers'], aux['confidences']

  return decode


def _unfrozen(tree):
  if hasattr(tree, 'items'):
    return {name: _unfrozen(leaf) for name, leaf in tree.items()}
  return tree


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('method', METHODS)
def test_tokens_and_exit_layers_equal_the_release(method, size):
  module, params, inputs = model_of(size)
  official = official_decoder(size, method, module, params)
  ours = our_decoder(size, method, params)
  closest, depths = np.inf, set()
  with jax.default_matmul_precision('highest'):
    for threshold in METHODS[method]:
      for row in range(len(inputs)):
        one = inputs[row : row + 1]
        tokens, layers, confidences = map(np.asarray, ours(one, threshold))
        expected = map(np.asarray, official(one, threshold))
        expected_tokens, expected_layers, expected_confidences = expected
        decoded = layers > 0
        np.testing.assert_array_equal(tokens, expected_tokens)
        np.testing.assert_array_equal(layers[decoded], expected_layers[decoded])
        np.testing.assert_allclose(
          confidences[decoded], expected_confidences[decoded], atol=1e-5
        )
        closest = min(closest, np.abs(confidences[decoded] - threshold).min())
        depths |= set(layers[decoded].tolist())
  print(f'{size} {method}: depths {sorted(depths)}, tie at {closest:.1e}')
  assert closest > 1e-5
  assert len(depths) > 2

"""Parity with Hugging Face's T5 on PyTorch, read from its own folders.

The folders and arrays come from
tests/programs/regenerate_huggingface_golden.py.
"""

import json

import jax
import numpy as np
import pytest
from tools.paths import GOLDEN

from calm_jax import checkpoints, decoding, model


@pytest.fixture(scope='module', params=['v1_0', 'v1_1'])
def golden(request):
  """Parameters, configuration and arrays of one variant."""
  folder = GOLDEN / f'huggingface_{request.param}'
  loaded = checkpoints.load(folder)
  with jax.default_matmul_precision('highest'):
    yield loaded, dict(np.load(folder / 'golden.npz')), folder


def test_the_variant_is_recognised(golden):
  loaded, _, folder = golden
  old = folder.name.endswith('v1_0')
  # Version 5 of transformers writes tie_word_embeddings for both.
  assert json.loads((folder / 'config.json').read_text())['tie_word_embeddings']
  assert loaded.config == model.T5Config(
    vocab_size=64,
    embed_dim=16,
    num_heads=3,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
    mlp_activations=('relu',) if old else ('gelu', 'linear'),
    tied_embeddings=old,
    dropout_rate=0.1,
  )


def test_encoder_states_and_logits(golden):
  loaded, arrays, _ = golden
  compare_states_and_logits(loaded, arrays)


def test_logits_of_a_tied_mt5_that_transformers_5_wrote():
  """Greedy tokens would be right, and every margin wrong, were they scaled."""
  folder = GOLDEN / 'huggingface_mt5_tied'
  loaded = checkpoints.load(folder)
  assert not loaded.config.tied_embeddings
  arrays = dict(np.load(folder / 'golden.npz'))
  with jax.default_matmul_precision('highest'):
    compare_states_and_logits(loaded, arrays)


def compare_states_and_logits(loaded, arrays):
  tokens = arrays['decoder_inputs'].astype(np.int32)
  inputs = arrays['inputs'][: len(tokens)].astype(np.int32)
  transformer = model.Transformer(loaded.config)

  @jax.jit
  def compute(params):
    variables = {'params': params}
    encoded = transformer.apply(variables, inputs, method='encode')
    return encoded.hidden, transformer.apply(variables, inputs, tokens)

  hidden, logits = compute(loaded.params)
  real = inputs > 0
  np.testing.assert_allclose(
    np.asarray(hidden)[real], arrays['encoded'][real], rtol=0, atol=1e-4
  )
  np.testing.assert_allclose(logits, arrays['logits'], rtol=0, atol=1e-4)
  assert np.ptp(arrays['logits']) > 4


@pytest.mark.slow
def test_greedy_tokens_of_a_hundred_inputs(golden):
  loaded, arrays, _ = golden
  result = decoding.generate(
    decoding.bind(
      model.as_layered_decoder(loaded.config),
      loaded.params,
      # One layer to compile instead of three.
      depth_loop=decoding.WhileDepthLoop(),
    ),
    arrays['inputs'].astype(np.int32),
    max_length=arrays['tokens'].shape[1],
    eos_id=1,
  )
  assert len(arrays['tokens']) == 100
  np.testing.assert_array_equal(result.tokens, arrays['tokens'])


def test_exporting_gives_the_files_of_save_pretrained(golden, tmp_path):
  """Same names, dtypes and bytes; and fields of config.json that agree."""
  safetensors = pytest.importorskip('safetensors.numpy')
  loaded, _, folder = golden
  checkpoints.convert(
    checkpoints.from_params(loaded.params, loaded.config),
    tmp_path / 'ours',
    checkpoints.Target(format='huggingface'),
  )
  theirs = safetensors.load_file(folder / 'model.safetensors')
  ours = safetensors.load_file(tmp_path / 'ours' / 'model.safetensors')
  assert ours.keys() == theirs.keys()
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array)
  config = json.loads((folder / 'config.json').read_text())
  written = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  # Only the two fields that versions 4 and 5 of transformers read differently.
  apart = ('tie_word_embeddings', 'use_cache')
  for name in (written.keys() & config.keys()) - set(apart):
    assert written[name] == config[name], name
  assert written['tie_word_embeddings'] == config['scale_decoder_outputs']

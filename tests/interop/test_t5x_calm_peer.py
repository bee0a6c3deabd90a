"""T5X's CALM with this library's weights says what this library says."""

import dataclasses

import jax
import numpy as np
import pytest
from tools import t5x_stack

from calm_jax import decoding, model
from calm_jax.benchmarks import arena_entries, t5x_calm

t5x_stack.skip_without(*t5x_calm.NEEDED)

import gin

LENGTH, THRESHOLD, L = 9, 0.3, 4
UNTIED = model.T5Config(
  vocab_size=96,
  embed_dim=24,
  num_heads=3,
  head_dim=8,
  mlp_dim=40,
  num_encoder_layers=1,
  num_decoder_layers=L,
  relative_buckets=16,
  relative_max_distance=20,
)
CONFIGS = {
  'untied': UNTIED,
  'tied': dataclasses.replace(
    UNTIED, tied_embeddings=True, mlp_activations=('relu',)
  ),
}


@pytest.fixture(autouse=True, scope='module')
def _clean_gin():
  yield
  gin.clear_config()


def inputs_of(config):
  inputs = np.random.default_rng(7).integers(
    2, config.vocab_size, (4, 9), dtype=np.int32
  )
  inputs[1, 6:] = 0
  inputs[3, 3:] = 0
  return inputs


def sharper(params):
  """Returns parameters whose logits are less flat, so that margins differ."""
  params = jax.tree.map(np.array, params)
  params['decoder']['decoder_norm']['scale'] *= 4
  return params


@pytest.mark.parametrize('kind', CONFIGS)
def test_the_same_weights_say_the_same(kind):
  config = CONFIGS[kind]
  params = sharper(model.init_params(config, jax.random.key(5)))
  inputs = inputs_of(config)
  full, early, never = t5x_calm.of_model(
    params,
    config,
    max_length=LENGTH,
    thresholds={THRESHOLD: 'early', 0.9999999: 'never'},
    full='full model',
  ).values()
  bound = decoding.bind(model.as_layered_decoder(config), params)
  _, released = arena_entries.of_margins([THRESHOLD])
  _, checked = arena_entries.of_margins([0.9999999])

  def ours(policy):
    return jax.device_get(
      decoding.generate(bound, inputs, policy=policy, max_length=LENGTH)
    )

  expected = ours(decoding.ComputePolicy())
  found = full.decode(inputs)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  assert found.mean_layers == L
  # All layers, whose last margins are those of the full model's logits.
  expected, found = ours(checked.policy), never.one_by_one(inputs)
  said = found.tokens != 0
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_allclose(
    found.confidences[said], expected.confidences[said], atol=1e-5
  )
  assert found.mean_layers == L
  # Rows alone leave where ours do; rows together with the last of them.
  expected, alone = ours(released.policy), early.one_by_one(inputs)
  said = alone.tokens != 0
  np.testing.assert_array_equal(alone.tokens, expected.tokens)
  np.testing.assert_array_equal(
    alone.exit_layers[said], expected.exit_layers[said]
  )
  np.testing.assert_allclose(
    alone.confidences[said], expected.confidences[said], atol=1e-5
  )
  assert 1 < alone.mean_layers < L
  together = early.decode(inputs)
  assert (together.exit_layers == together.exit_layers[:1]).all()
  assert together.mean_layers > alone.mean_layers
  np.testing.assert_array_equal(early(inputs), together.tokens)

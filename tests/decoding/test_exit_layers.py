"""A feed-forward layer per exit: T5's own, and exact at full depth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, model
from calm_jax.exit_layers import ExitLayers
from calm_jax.model import layers as blocks

SIZE, UNITS, LAST = cases.CONFIG.embed_dim, 5, cases.L - 1
STATES = jax.random.normal(jax.random.key(0), (3, SIZE)) * 20.0


def arrays(*shapes):
  rng = np.random.default_rng(6)
  return [np.float32(rng.normal(size=shape) / 4.0) for shape in shapes]


LAYERS = ExitLayers(
  *arrays((LAST, SIZE), (LAST, SIZE, 2, UNITS), (LAST, UNITS, SIZE))
)


def test_it_is_the_half_of_a_layer_of_t5():
  """Of a state of size 1, by the model's block; and of another size alike."""
  config = dataclasses.replace(cases.CONFIG, mlp_dim=UNITS)
  ones = STATES / jnp.sqrt(jnp.mean(STATES**2, axis=-1, keepdims=True))
  params = {
    'wi_0': {'kernel': LAYERS.gates[1][:, 0]},
    'wi_1': {'kernel': LAYERS.gates[1][:, 1]},
    'wo': {'kernel': LAYERS.out[1]},
  }
  added = blocks.FeedForward(config).apply({'params': params}, ones)
  expected = ones * LAYERS.scale[1] + added
  for size in (1.0, 64.0):
    found = LAYERS(ones * size, 1) / size
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_layer_may_be_said_in_any_form(dtype):
  """And the last one's states are what they were, to the bit."""
  states = STATES.astype(dtype)
  # In one row's bfloat16 and another's, sums differ.
  close = dict(rtol=1e-5 if dtype == jnp.float32 else 2e-2, atol=1e-2)
  jitted = jax.jit(lambda states, layer: LAYERS(states, layer))
  for layer in range(LAST):
    number = np.float32(LAYERS(states, layer))
    for form in (jnp.int32(layer), jnp.full(3, layer)):
      found = jitted(states, form)
      assert found.dtype == dtype
      np.testing.assert_allclose(np.float32(found), number, **close)
  mixed = jitted(states, jnp.array([2, LAST, 0]))
  for row, layer in enumerate([2, LAST, 0]):
    np.testing.assert_allclose(
      np.float32(mixed[row]), np.float32(LAYERS(states, layer)[row]), **close
    )
  for form in (LAST, jnp.int32(LAST), jnp.full(3, LAST)):
    np.testing.assert_array_equal(jitted(states, form), states)
  np.testing.assert_array_equal(mixed[1], states[1])


def test_the_ledger_counts_every_weight():
  readout = decoding.AdaptedVocabulary(LAYERS)
  weights = sum(leaf[0].size for leaf in jax.tree.leaves(LAYERS))
  assert LAYERS.products * SIZE == weights
  counted = [int(readout.extra_products(layer)) for layer in range(cases.L)]
  assert counted == [LAYERS.products] * LAST + [0]


def test_matrices_are_in_the_dtype_of_the_decoder():
  config = dataclasses.replace(cases.CONFIG, dtype='bfloat16')
  checked = LAYERS.check(model.as_layered_decoder(config))
  assert [leaf.dtype for leaf in jax.tree.leaves(checked)] == [
    jnp.float32,
    jnp.bfloat16,
    jnp.bfloat16,
  ]
  found, whole = (np.asarray(one(STATES, 0)) for one in (checked, LAYERS))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, whole, rtol=0.1, atol=1.0)


@pytest.mark.parametrize(
  ('shapes', 'message'),
  [
    (
      ((2, SIZE), (2, SIZE, 2, 3), (2, 3, SIZE)),
      r'gates \[2, 16, 2, 3\] .*of 4 layers they are \[3, 16\], .*give those',
    ),
    (
      ((3, SIZE), (3, SIZE, 2, 3), (3, 4, SIZE)),
      r'out \[3, 4, 16\]; .*\[3, F, 16\], F at least 1',
    ),
    (((3, SIZE), (3, SIZE, 2, 0), (3, 0, SIZE)), 'F at least 1'),
    (((3, SIZE), (3, SIZE), (3, 3, SIZE)), r'gates \[3, 16\]'),
  ],
)
def test_bad_ones_are_refused_in_words(shapes, message):
  readout = decoding.AdaptedVocabulary(ExitLayers(*arrays(*shapes)))
  with pytest.raises(ValueError, match=message):
    readout.check(cases.decoder(), cases.B, cases.T)


def test_what_is_no_number_is_refused():
  spoilt = dataclasses.replace(LAYERS, out=LAYERS.out * np.nan)
  with pytest.raises(ValueError, match='out of the exit adapters nan'):
    spoilt.check(cases.decoder())

"""Adapters around readouts: exact at full depth, one map in all its forms.

That policies with them keep the laws is in `test_policy_laws`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, exits
from calm_jax.exit_adapters import ExitAdapters

ADAPTERS = cases.ADAPTED.adapters
SIZE = cases.CONFIG.embed_dim
STATES = jax.random.normal(jax.random.key(0), (3, SIZE)) * 20.0


def read(readout, layer, states=STATES):
  """Returns the logits of states of a layer, or of a layer each."""

  @jax.jit
  def step(bound, readout, states, layer):
    _, reading = readout.step(
      None,
      bound,
      hidden=states,
      layer=layer,
      first=True,
      active=jnp.ones(len(states), bool),
    )
    return reading.logits

  return np.asarray(step(cases.bound(), readout, states, layer))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_last_layer_is_read_to_the_bit(dtype):
  """Whatever the adapters: the original checkpoint's logits."""
  states, last = STATES.astype(dtype), cases.L - 1
  plain = read(decoding.FullVocabulary(), last, states)
  for layer in (last, jnp.full(3, last)):
    np.testing.assert_array_equal(read(cases.ADAPTED, layer, states), plain)
  # As a Python number it is no part of the program.
  np.testing.assert_array_equal(ADAPTERS(states, last), states)
  mixed = read(cases.ADAPTED, jnp.array([0, last, 1]), states)
  np.testing.assert_array_equal(mixed[1], plain[1])
  assert (mixed[[0, 2]] != plain[[0, 2]]).any(axis=1).all()


def test_a_layer_may_be_said_in_any_form():
  jitted = jax.jit(lambda states, layer: ADAPTERS(states, layer))
  for layer in range(cases.L):
    number = ADAPTERS(STATES, layer)
    for form in (jnp.int32(layer), jnp.full(3, layer)):
      np.testing.assert_allclose(jitted(STATES, form), number, rtol=1e-5)
  assert not np.allclose(ADAPTERS(STATES, 0), ADAPTERS(STATES, 1))


def test_adapters_are_what_they_say():
  """By hand, and alike for states of any size."""
  states = np.asarray(STATES, np.float64)
  size = np.sqrt((states**2).mean(-1, keepdims=True))
  inner = jax.nn.gelu(states / size @ ADAPTERS.down[1])
  expected = states * ADAPTERS.scale[1] + size * (inner @ ADAPTERS.up[1])
  np.testing.assert_allclose(ADAPTERS(STATES, 1), expected, rtol=1e-4)
  np.testing.assert_allclose(ADAPTERS(STATES * 8, 1), 8 * expected, rtol=1e-4)


def test_untrained_ones_change_nothing():
  zeros = dataclasses.replace(ADAPTERS, up=0.0 * ADAPTERS.up)
  for adapters in (
    ExitAdapters.identity(cases.L, SIZE),
    dataclasses.replace(zeros, scale=np.ones_like(ADAPTERS.scale)),
  ):
    for layer in range(cases.L):
      np.testing.assert_array_equal(adapters(STATES, layer), STATES)


@pytest.mark.slow
def test_checked_drafts_are_the_full_models():
  """Law 11: adapters draft, and the model as it is checks."""
  case = cases.case('margin_adapted_exact')
  policy = dataclasses.replace(
    case.policy(np.arange(cases.B), 0.1),
    verification=decoding.VerifyEvery(3),
  )
  result = cases.run(dataclasses.replace(case, policy=lambda *_: policy))
  np.testing.assert_array_equal(result.tokens, cases.decode('full').tokens)
  assert (result.exit_layers[result.exit_layers > 0] < cases.L).any()
  assert result.work.cycles.sum() > 0


@pytest.mark.slow
def test_measures_of_the_state_see_it_as_it_is():
  """Exits are those without adapters; tokens are read through them."""
  results = []
  for readout in (decoding.FullVocabulary(), cases.ADAPTED):
    policy = decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(exits.StateSimilarity(), 0.0),
      readout=readout,
    )
    results.append(
      cases.run(cases.Case('similarity', lambda *_, one=policy: one))
    )
  plain, adapted = results
  first = (slice(None), 0)
  np.testing.assert_array_equal(
    plain.confidences[first], adapted.confidences[first]
  )
  assert (plain.tokens[first] != adapted.tokens[first]).any()


def shapes(scale=(3, 16), down=(3, 16, 2), up=(3, 2, 16)):
  return ExitAdapters(
    *(None if shape is None else np.ones(shape) for shape in (scale, down, up))
  )


@pytest.mark.parametrize(
  ('readout', 'error', 'message'),
  [
    (
      decoding.AdaptedVocabulary(ExitAdapters.identity(3, SIZE)),
      ValueError,
      r'scale \[2, 16\], .*of 4 layers they are \[3, 16\], .*give those',
    ),
    (
      decoding.AdaptedVocabulary(ExitAdapters.identity(4, 8)),
      ValueError,
      r'scale \[3, 8\]',
    ),
    (
      decoding.AdaptedVocabulary(shapes(up=(3, 1, 16))),
      ValueError,
      r'up \[3, 1, 16\]',
    ),
    (
      decoding.AdaptedVocabulary(shapes(up=None)),
      ValueError,
      r'up \[\]',
    ),
    (
      decoding.AdaptedVocabulary(shapes(down=(3, 16, 0), up=(3, 0, 16))),
      ValueError,
      'R at least 1',
    ),
    (
      decoding.AdaptedVocabulary(
        ExitAdapters(np.full((3, 16), np.nan, np.float32))
      ),
      ValueError,
      'scale of the exit adapters nan is outside',
    ),
    (
      decoding.AdaptedVocabulary(ADAPTERS, cases.ADAPTED),
      ValueError,
      'is an AdaptedVocabulary itself',
    ),
    (
      decoding.AdaptedVocabulary(ExitAdapters),
      TypeError,
      'adapters of AdaptedVocabulary is the class ExitAdapters',
    ),
    (
      decoding.AdaptedVocabulary(ADAPTERS, decoding.FullVocabulary),
      TypeError,
      'inner of AdaptedVocabulary is the class FullVocabulary',
    ),
    (
      decoding.AdaptedVocabulary('runs/demo'),
      ValueError,
      r"is 'runs/demo'; give ExitAdapters, such as runs.load_exit_adapters",
    ),
  ],
)
def test_bad_ones_are_refused_in_words(readout, error, message):
  with pytest.raises(error, match=message):
    readout.check(cases.decoder(), cases.B, cases.T)

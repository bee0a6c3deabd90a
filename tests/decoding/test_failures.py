"""Numbers that are not finite end a row, alone, and it is said where.

The toy decoder is exact; here one sub-layer of it, at one position, makes a
state of NaN or infinity for rows whose source begins with 2.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import decoding, exits

INPUTS = np.array([[2, 1], [1, 1]], np.int32)
L = T = 3
CASES = list(itertools.product(range(L), range(T), (np.nan, np.inf)))


def _attend(params, layer, hidden, positions, cache, context=None):
  good = toy_decoder.toy_decoder()
  hidden = good.attend(params, layer, hidden, positions, cache, context)
  at = jnp.broadcast_to(positions, hidden.shape[:2]) == params['bad'][1]
  bad = at & (cache['ease'] == 2)[:, None] & (layer == params['bad'][0])
  sure = jnp.where(bad, params['bad'][2], hidden[..., 1])
  return jnp.stack([hidden[..., 0], sure], axis=-1)


DECODER = dataclasses.replace(toy_decoder.toy_decoder(), attend=_attend)


def broken(bad_layer, bad_position, number):
  """The toy decoder with one bad place."""
  return decoding.bind(
    DECODER,
    {
      **toy_decoder.toy_params(),
      'bad': jnp.array([bad_layer, bad_position, number], jnp.float32),
    },
    depth_loop=decoding.WhileDepthLoop(),
  )


def decode(bound, sampler):
  draws = not decoding.as_sampler(sampler).deterministic
  return jax.device_get(
    decoding.generate(
      bound,
      INPUTS,
      policy=exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0),
      sampler=sampler,
      max_length=T,
      eos_id=-1,
      rng=jax.random.key(0) if draws else None,
    )
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'sampler',
  [None, decoding.Temperature(0.5), decoding.BeamSearch(2)],
  ids=['greedy', 'draws', 'beams'],
)
def test_a_row_ends_alone_where_its_numbers_break(sampler):
  healthy = decode(toy_decoder.toy_bound(), sampler)
  assert not healthy.failed.any()
  for layer, position, number in CASES if sampler is None else CASES[::5]:
    bound = broken(layer, position, number)
    result = decode(bound, sampler)
    assert list(result.failed) == [True, False]
    assert (
      result.lengths[0] == position and not result.tokens[0, position:].any()
    )
    for name in ('tokens', 'exit_layers', 'scores', 'lengths'):
      one, other = getattr(result, name), getattr(healthy, name)
      np.testing.assert_array_equal(one[1], other[1], name)
      if name == 'tokens' and not isinstance(sampler, decoding.BeamSearch):
        np.testing.assert_array_equal(one[0, :position], other[0, :position])
    rows = [jax.tree.map(lambda leaf, r=r: leaf[r], result) for r in (0, 1)]
    said = decoding.describe_failure(bound, INPUTS[0], rows[0])
    assert (
      f'position {position} are not finite from layer {layer + 1} of' in said
    )
    assert decoding.describe_failure(bound, INPUTS[1], rows[1]) is None


def test_what_ended_before_is_not_returned_for_a_search_that_failed():
  bound = broken(0, 2, np.nan)
  result = jax.device_get(
    decoding.generate(
      bound,
      INPUTS,
      sampler=decoding.BeamSearch(3),
      max_length=T,
      eos_id=int(decode(toy_decoder.toy_bound(), None).tokens[0, 0]),
      num_samples=3,
    )
  )
  assert result.failed.tolist() == [[True] * 3, [False] * 3]

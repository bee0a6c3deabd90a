"""Forced prefixes and suppressed tokens, by hand on the toy decoder.

That they keep the laws is asserted by `test_policy_laws`, that a beam search
under them is the reference's by `test_beam_search`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits
from calm_jax.decoding import forced_prefix as prefixes
from calm_jax.interfaces import Reading

MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)


def generate(rule=None, *, readout=None, max_length=4, eos_id=-1, **options):
  return decoding.generate(
    toy.toy_bound(),
    np.array([[1, 2], [2, 0]]),
    policy=decoding.ComputePolicy(
      exit_rule=rule or MARGIN, readout=readout or decoding.FullVocabulary()
    ),
    max_length=max_length,
    eos_id=eos_id,
    **options,
  )


def test_a_prefix_runs_at_full_depth_and_counts_for_nothing():
  """Behind the full model's own 3, 9 the rest is that of exits 3, 3, 1, 1.

  At position 2 layer 1 says 9 + (0 + 3) + 1 = 3; its K/V are 3 above. At
  position 3 it says 3 + (0 + 3 + 9) + 1 = 6.
  """
  forced = np.array([[3, 9, 0], [0, 0, 0]])
  result = generate(exits.FixedExit(1), forced_prefix=forced)
  np.testing.assert_array_equal(
    result.tokens, [[3, 9, 3, 6], toy.EXIT_1_TOKENS]
  )
  np.testing.assert_array_equal(
    result.exit_layers, [[3, 3, 1, 1], [1, 1, 1, 1]]
  )
  np.testing.assert_array_equal(result.lengths, [4, 4])
  np.testing.assert_array_equal(result.prefix_lengths, [2, 0])
  np.testing.assert_array_equal(
    result.is_chosen, [[False, False, True, True], [True] * 4]
  )
  # After one layer row 0 has the odds 9 : 9, among ten tokens; row 1 18 : 9.
  np.testing.assert_allclose(
    result.scores, [2 * np.log(1 / 2), 4 * np.log(2 / 3)], rtol=1e-5
  )


def test_confidences_are_not_asked_for_in_a_prefix():
  result = generate(forced_prefix=np.array([[5], [6]]))
  assert np.isnan(result.confidences[:, 0]).all()
  np.testing.assert_array_equal(result.rejected_confidences[:, 0], -np.inf)
  np.testing.assert_array_equal(result.exit_layers[:, 0], 3)
  np.testing.assert_array_equal(result.exit_layers[:, 1:], [[2] * 3, [1] * 3])


@pytest.mark.parametrize(
  'readout', [None, decoding.PrunedVocabulary(num_blocks=2, block_size=2)]
)
def test_suppressed_tokens_are_left_out_of_everything(readout):
  """Layer 1 says 1, which may not be said: all the others tie.

  Of a shortlist 0..3 without 1 and 2, two are left; of the vocabulary eight.
  The margin is 0, so both rows run on to layer 3, which says 3.
  """
  result = generate(readout=readout, suppressed_tokens=(1, 2), max_length=1)
  np.testing.assert_array_equal(result.tokens, [[3], [3]])
  np.testing.assert_array_equal(result.exit_layers, [[3], [3]])
  odds, others = np.array([27.0, 54.0]), 1 if readout else 7
  np.testing.assert_allclose(
    result.confidences[:, 0], (odds - 1) / (odds + others), rtol=1e-5
  )
  np.testing.assert_allclose(
    result.scores, np.log(odds / (odds + others)), rtol=1e-5
  )


def test_samples_never_say_them_and_begin_alike():
  options = dict(
    sampler=decoding.Temperature(5.0),
    num_samples=20,
    forced_prefix=np.array([[7, 2], [8, 0]]),
  )
  suppressed = (0, 1, 3, 4)
  results = [
    generate(rng=jax.random.key(seed), suppressed_tokens=suppressed, **options)
    for seed in (0, 0, 1)
  ]
  jax.tree.map(np.testing.assert_array_equal, results[0], results[1])
  tokens = np.asarray(results[0].tokens)
  assert (tokens != results[2].tokens).any()
  assert (tokens[0, :, :2] == [7, 2]).all() and (tokens[1, :, 0] == 8).all()
  assert set(np.unique(tokens)) == {2, 5, 6, 7, 8, 9}
  np.testing.assert_array_equal(results[0].prefix_lengths[:, 3], [2, 1])


def test_a_forced_token_need_not_be_a_candidate():
  reading = Reading(
    jnp.array([[0.5, 2.0], [0.5, 2.0]]),
    jnp.array([[4, 8], [4, 8]]),
    jnp.array([3.0, 3.0]),
  )
  logits, ids, log_total = prefixes.force(reading, jnp.array([7, 0]))
  np.testing.assert_array_equal(logits, [[0.0, -np.inf], [0.5, 2.0]])
  np.testing.assert_array_equal(ids, [[7, 8], [4, 8]])
  np.testing.assert_array_equal(log_total, [0.0, 3.0])


@pytest.mark.slow
def test_inside_another_program():
  def decode(forced, suppressed):
    return generate(forced_prefix=forced, suppressed_tokens=suppressed)

  # Behind a 0 of a traced prefix nothing is forced.
  forced = jnp.array([[5, 6, 0], [0, 0, 3]])
  result = jax.jit(decode)(forced, jnp.array([1, 1, 8]))
  expected = decode(forced.at[1].set(0), (8, 1))
  np.testing.assert_array_equal(result.tokens, expected.tokens)
  np.testing.assert_array_equal(result.prefix_lengths, [2, 0])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(suppressed_tokens=[3, 10]), r'suppressed_tokens 10 .*\[0, 9\]'),
    (dict(suppressed_tokens=[1.5]), 'suppressed_tokens .* whole'),
    (dict(suppressed_tokens=7), r'suppressed_tokens has shape \[\]'),
    (dict(suppressed_tokens=[4], eos_id=4), 'hold eos_id 4, .* eos_id=-1'),
    (dict(suppressed_tokens=range(10)), 'hold all 10 tokens'),
    (dict(forced_prefix=[3, 4]), r'shape \[2\]; .* 2 inputs'),
    (dict(forced_prefix=[[3]]), r'shape \[1, 1\]; .* 2 inputs'),
    (dict(forced_prefix=[[3], [10]]), 'forced_prefix token 10'),
    (dict(forced_prefix=[[3], [-2]]), 'forced_prefix token -2'),
    (dict(forced_prefix=[[3, 1], [0, 2]]), 'row 1 .* token 2 behind a 0'),
    (dict(forced_prefix=[[3], [4]], eos_id=4), 'row 1 .* eos_id 4'),
    (dict(forced_prefix=[[3] * 5] * 2), 'row 0 .* 5 tokens, .* max_length 4'),
    (
      dict(forced_prefix=[[3], [4]], suppressed_tokens=[4]),
      'token 4 is in row 1 of forced_prefix and in suppressed_tokens',
    ),
  ],
)
def test_what_cannot_work_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    generate(**options)

"""Vocabulary pruning: the shortlist, its padding, and decodes by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits
from calm_jax.decoding import sampling
from calm_jax.exits.candidates import first_best

LOOPS = (decoding.WhileDepthLoop(), decoding.UnrolledDepthLoop())
TWO_PAIRS = decoding.PrunedVocabulary(num_blocks=2, block_size=2)


def generate(readout, *, threshold=1.0, rule=None, depth_loop=None, **options):
  rule = rule or exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
  return decoding.generate(
    toy.toy_bound(depth_loop=depth_loop),
    np.array([[1], [2]]),
    policy=decoding.ComputePolicy(readout=readout, exit_rule=rule),
    max_length=2,
    eos_id=-1,
    **options,
  )


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_tokens_by_hand(depth_loop):
  """The shortlist is the pair of layer 1's token and the first other pair.

  At position 0 layer 1 says 1, so that 0..3 are kept, and layer 3 says 3. At
  position 1 it says 4, 0 1 4 5 are kept, and layer 3 would say 9: what is left
  is a tie, and the lowest id is said.
  """
  result = generate(TWO_PAIRS, depth_loop=depth_loop)
  np.testing.assert_array_equal(result.tokens, [[3, 0]] * 2)
  np.testing.assert_array_equal(result.exit_layers, 3)
  # With k = 3 one of four has the odds 27 : 1 of row 0, with 6 those of row 1.
  odds = np.array([27.0, 54.0])
  np.testing.assert_allclose(
    result.confidences[:, 0], (odds - 1) / (odds + 3), rtol=1e-5
  )
  np.testing.assert_array_equal(result.confidences[:, 1], 0.0)
  np.testing.assert_allclose(
    result.scores, np.log(odds / (odds + 3)) + np.log(1 / 4), rtol=1e-5
  )


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_the_exit_state_may_choose_among_all(depth_loop):
  readout = dataclasses.replace(TWO_PAIRS, final='full')
  result = generate(readout, depth_loop=depth_loop)
  np.testing.assert_array_equal(result.tokens, [toy.FULL_TOKENS[:2]] * 2)
  full = generate(decoding.FullVocabulary(), rule=exits.NeverExit())
  np.testing.assert_array_equal(result.scores, full.scores)
  # At position 1 none of the candidates stands out.
  np.testing.assert_array_equal(result.confidences[:, 1], 0.0)


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_rows_that_stopped_keep_their_candidates(depth_loop):
  """Margins over 4 of 10: 8 / 12 and 17 / 21 after layer 1, in rows 0 and 1."""
  result = generate(TWO_PAIRS, threshold=0.7, depth_loop=depth_loop)
  np.testing.assert_array_equal(result.exit_layers[:, 0], [2, 1])
  np.testing.assert_array_equal(result.tokens[:, 0], [2, 1])
  np.testing.assert_allclose(
    result.rejected_confidences[:, 0], [8 / 12, -np.inf], rtol=1e-5
  )


def test_a_rule_without_logits_leaves_nothing_to_prune():
  rule = exits.FixedExit(2)
  pruned = generate(TWO_PAIRS, rule=rule)
  full = generate(decoding.FullVocabulary(), rule=rule)
  jax.tree.map(np.testing.assert_array_equal, pruned, full)


def logits_of(vocab_size, rows=32):
  """Returns logits with many ties, float32 [rows, V]."""
  rng = np.random.default_rng(0)
  return rng.integers(-9, 9, (rows, vocab_size)).astype(np.float32)


@pytest.mark.parametrize('vocab_size', [48, 45, 41])
@pytest.mark.parametrize('num_blocks', [1, 3, 6])
def test_the_shortlist_holds_the_best_tokens(num_blocks, vocab_size):
  readout = decoding.PrunedVocabulary(num_blocks=num_blocks, block_size=8)
  logits = logits_of(vocab_size)
  blocks = np.asarray(readout.best_blocks(logits))
  assert blocks.shape == (32, num_blocks) and blocks.dtype == np.int32
  assert (np.diff(blocks, axis=-1) > 0).all()
  token_ids, is_token = map(np.asarray, readout.candidates(blocks, vocab_size))
  kept = np.asarray(readout.keep(logits, blocks))
  for row, ids in enumerate(token_ids):
    real = ids[is_token[row]]
    assert (np.diff(real) > 0).all() and real[-1] < vocab_size
    np.testing.assert_array_equal(kept[row, is_token[row]], logits[row, real])
    np.testing.assert_array_equal(kept[row, ~is_token[row]], -np.inf)
    # The values of the best tokens are there, as many as there are blocks.
    best = np.sort(logits[row])[::-1][:num_blocks]
    np.testing.assert_array_equal(np.sort(kept[row])[::-1][:num_blocks], best)
  # Ties go to the same token as without pruning.
  choice = np.asarray(first_best(kept))[:, None]
  np.testing.assert_array_equal(
    np.take_along_axis(token_ids, choice, axis=-1)[:, 0],
    logits.argmax(axis=-1),
  )


def test_all_blocks_are_the_vocabulary_for_samplers_too():
  """What fills up the last block is never drawn and moves no draw."""
  logits = logits_of(45)
  readout = decoding.PrunedVocabulary(num_blocks=6, block_size=8)
  blocks = readout.best_blocks(logits)
  token_ids, _ = readout.candidates(blocks, 45)
  keys = jax.random.split(jax.random.key(1), 32)
  for sampler in (
    decoding.Nucleus(0.8, temperature=3.0),
    decoding.TopK(45),
  ):
    choose = jax.jit(functools.partial(sampling.choose, sampler))
    expected = choose(jnp.asarray(logits), keys=keys)
    tokens, scores = choose(
      readout.keep(logits, blocks), token_ids=token_ids, keys=keys
    )
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(num_blocks=0), 'num_blocks 0 must be a whole number at least 1'),
    (dict(num_blocks=2.0), 'num_blocks 2.0 must be a whole number'),
    (
      dict(num_blocks=5, block_size=3),
      'num_blocks is 5, but a vocabulary of 10 has 4 blocks of 3; give at most',
    ),
    (dict(block_size=0), r'block_size 0 must be a whole number in 1\.\.10'),
    (dict(block_size=11), 'block_size 11 must be a whole number'),
    (dict(final='all'), r"final is 'all'; give one of \('pruned', 'full'\)"),
  ],
)
def test_bad_sizes_are_refused(fields, message):
  readout = decoding.PrunedVocabulary(
    **{'num_blocks': 2, 'block_size': 2, **fields}
  )
  with pytest.raises(ValueError, match=message):
    generate(readout)


def test_only_the_first_check_reads_everything():
  """In the unrolled program without a branch; in the other one in a branch."""

  def text(depth_loop):
    def run(inputs):
      rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0)
      policy = decoding.ComputePolicy(readout=TWO_PAIRS, exit_rule=rule)
      return decoding.generate(
        toy.toy_bound(depth_loop=depth_loop),
        inputs,
        policy=policy,
        max_length=2,
      )

    return str(jax.make_jaxpr(run)(np.array([[1]])))

  unrolled = text(decoding.UnrolledDepthLoop())
  assert unrolled.count('top_k[') == 1
  assert unrolled.count(' cond[') == 2  # layers 2 and 3, nothing else
  assert text(decoding.WhileDepthLoop()).count('top_k[') == 1

"""Misses of a shortlist, counted by hand on the toy decoder."""

import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, evaluation

BATCHES = [{'encoder_input_tokens': np.array([[1], [1], [7]]), 'num_valid': 2}]
# Row 0 is the full decode, row 1 ends after two tokens.
TOKENS = np.array([toy.FULL_TOKENS, [*toy.FULL_TOKENS[:2], 0, 0]])


LOOPS = decoding.WhileDepthLoop(), decoding.UnrolledDepthLoop()


def misses(batches=BATCHES, tokens=TOKENS, depth_loop=LOOPS[0], **options):
  readout = decoding.PrunedVocabulary(num_blocks=1, block_size=2)
  return evaluation.count_shortlist_misses(
    toy.toy_bound(depth_loop=depth_loop),
    batches,
    tokens,
    readout=readout,
    **options,
  )


@pytest.mark.parametrize('depth_loop', LOOPS, ids=['traced', 'apart'])
def test_misses_by_hand(depth_loop):
  """Best tokens of layers 1, 2, 3: 1 2 3, then 4 6 9, then 3 9 8 and 1 0 8.

  Their pairs are 0 1 1, then 2 3 4, then 1 4 4 and 0 0 4: of six tokens five
  are missed at layer 2 and six at layer 3. A best token has 9 k times the
  probability of each of the nine others, so a pair holds (9 k + 1) / (9 k + 9)
  with it and 2 / (9 k + 9) without.
  """
  counted = misses(depth_loop=depth_loop)
  assert counted.num_tokens == 6
  np.testing.assert_allclose(counted.miss_rates, [0.0, 5 / 6, 1.0])
  kept = [10 / 18, (5 * 2 / 27 + 19 / 27) / 6, 2 / 36]
  np.testing.assert_allclose(counted.kept_probabilities, kept, rtol=1e-5)


def test_later_shortlists_speak_of_later_layers():
  """Pairs of layers 2 and 3: 1 1, then 3 4, then 4 4 and 0 4."""
  counted = misses(first_exit_layer=2)
  np.testing.assert_allclose(counted.miss_rates, [np.nan, 0.0, 3 / 6])
  np.testing.assert_allclose(
    counted.kept_probabilities,
    [np.nan, 19 / 27, (28 / 36 + 2 / 36) / 2],
    rtol=1e-5,
  )


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='hold 2 inputs and tokens 1 outputs'):
    misses(tokens=TOKENS[:1])
  with pytest.raises(ValueError, match='the outputs hold no tokens'):
    misses(tokens=0 * TOKENS)
  with pytest.raises(ValueError, match=r'first_exit_layer 4 must be .* 1\.\.3'):
    misses(first_exit_layer=4)

"""Checks and drafts over an output matrix in 8 bits."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, exits

MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.3)
UNROLLED = decoding.UnrolledDepthLoop()


def generate(policy, **options):
  with jax.default_matmul_precision('highest'):
    result = decoding.generate(
      cases.bound(UNROLLED),
      cases.inputs(),
      policy=policy,
      max_length=cases.T,
      eos_id=cases.EOS_ID,
      **options,
    )
  return cases.host(result)


def checks(final='float', **slots):
  readout = decoding.Int8Vocabulary(final)
  return decoding.ComputePolicy(exit_rule=MARGIN, readout=readout, **slots)


@pytest.mark.slow
def test_a_matrix_made_beforehand_changes_nothing():
  made = decoding.Int8Vocabulary.of(cases.bound(UNROLLED))
  policy = dataclasses.replace(checks(), readout=made)
  one, other = generate(policy), generate(checks())
  for field in ('tokens', 'exit_layers', 'confidences'):
    np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
  assert decoding.describe(policy) == decoding.describe(checks())


@pytest.mark.slow
def test_drafts_in_8_bits_are_checked_in_float():
  policy = checks(
    'int8',
    cache_fill=decoding.CatchUp((1, 2)),
    verification=decoding.VerifyEvery(3),
  )
  result, full = generate(policy), generate(None)
  np.testing.assert_array_equal(result.tokens, full.tokens)
  np.testing.assert_allclose(result.scores, full.scores, atol=1e-4)
  assert 0 < result.work.accepted.sum()


@pytest.mark.slow
def test_suppressed_tokens_are_neither_looked_at_nor_said():
  options = dict(suppressed_tokens=cases.SUPPRESSED)
  free = generate(checks('int8'))
  assert np.isin(free.tokens, cases.SUPPRESSED).any(), 'nothing to suppress'
  for final in ('float', 'int8'):
    result = generate(checks(final), **options)
    assert not np.isin(result.tokens, cases.SUPPRESSED).any()
    assert np.isfinite(result.scores).all()


def test_what_it_cannot_read_is_refused():
  size = (1, 4)
  for final, message in (('half', "final is 'half'"), (None, 'final is None')):
    with pytest.raises(ValueError, match=message):
      decoding.Int8Vocabulary(final).check(cases.decoder(), *size)
  made = decoding.Int8Vocabulary.of(cases.bound())
  other = dataclasses.replace(cases.decoder(), vocab_size=cases.V + 1)
  with pytest.raises(ValueError, match=r'is \(40, 16\) as \(V, D\), this'):
    made.check(other, *size)
  unable = dataclasses.replace(cases.decoder(), quantise=None)
  with pytest.raises(ValueError, match='no quantise, by which'):
    made.check(unable, *size)

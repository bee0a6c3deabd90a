"""Law 11 for drafts of the first layers in 8 bits."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding

LOOPS = (
  decoding.UnrolledDepthLoop(),
  decoding.WhileDepthLoop(),
  decoding.CompactingDepthLoop(),
)


def bound(depth_loop=LOOPS[0], weights=None):
  return decoding.bind(
    cases.decoder(), cases.params(), depth_loop=depth_loop, weights=weights
  )


def drafts_of(layers, *, depth_loop=LOOPS[0], tokens=3, **slots):
  drafter = decoding.FirstLayers(bound(depth_loop, 'int8'), layers)
  return decoding.ComputePolicy(
    cache_fill=decoding.CatchUp((1, 2)),
    verification=decoding.DraftAhead(drafter, decoding.VerifyEvery(tokens)),
    **slots,
  )


def generate(policy, *, depth_loop=LOOPS[0], **options):
  options = dict(max_length=cases.T, eos_id=cases.EOS_ID) | options
  with jax.default_matmul_precision('highest'):
    result = decoding.generate(
      bound(depth_loop), cases.inputs(), policy=policy, **options
    )
  return cases.host(result)


def assert_same_output(result, full):
  for field in ('tokens', 'lengths', 'exit_layers'):
    np.testing.assert_array_equal(getattr(result, field), getattr(full, field))
  np.testing.assert_allclose(result.scores, full.scores, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('depth_loop', 'layers'),
  [
    (LOOPS[0], 4),
    *(
      pytest.param(loop, layers, marks=pytest.mark.slow)
      for loop in LOOPS
      for layers in (1, 3, 4)
      if (loop, layers) != (LOOPS[0], 4)
    ),
  ],
)
def test_says_what_the_full_model_says(depth_loop, layers):
  full = generate(None, depth_loop=depth_loop)
  result = generate(
    drafts_of(layers, depth_loop=depth_loop), depth_loop=depth_loop
  )
  assert_same_output(result, full)
  work = result.work
  assert work.verified.sum() > 0
  assert work.accepted.sum() < work.verified.sum() or layers == cases.L
  # All layers in 8 bits are nearly always right.
  if layers == cases.L:
    assert work.accepted.sum() > 0.7 * work.verified.sum()
  # Every draft ran its first layers once, and all of them in a check.
  drafted = work.verified.sum(axis=1)
  np.testing.assert_array_equal(work.caught_up.sum(axis=1), cases.L * drafted)
  checks = work.checks.sum(axis=1) - drafted
  np.testing.assert_array_equal(
    work.attention.sum(axis=1), layers * drafted + cases.L * checks
  )


@pytest.mark.slow
def test_what_is_drawn_is_what_the_full_model_draws():
  options = dict(
    sampler=decoding.Temperature(1.0),
    num_samples=2,
    rng=cases.KEY,
    forced_prefix=cases.PREFIXES,
    suppressed_tokens=cases.SUPPRESSED,
  )
  assert_same_output(
    generate(drafts_of(3), **options), generate(None, **options)
  )


@pytest.mark.slow
def test_drafts_may_be_read_over_the_first_tokens():
  full = generate(None)
  policy = drafts_of(3, readout=decoding.FirstTokens(30))
  assert_same_output(generate(policy), full)


def test_what_cannot_draft_is_refused():
  drafter = decoding.FirstLayers(bound(weights='int8'), 2)

  def check(drafter):
    policy = decoding.ComputePolicy(
      cache_fill=decoding.CatchUp(),
      verification=decoding.DraftAhead(drafter),
    )
    return policy.check(cases.decoder(), 1, 4)

  check(drafter)
  for layers in (0, 5):
    with pytest.raises(ValueError, match='layers of FirstLayers'):
      check(dataclasses.replace(drafter, layers=layers))
  other = dataclasses.replace(cases.decoder(), num_layers=5)
  with pytest.raises(ValueError, match='are of another decoder'):
    check(
      decoding.FirstLayers(dataclasses.replace(drafter.bound, decoder=other), 2)
    )
  with pytest.raises(ValueError, match='or decoding.FirstLayers'):
    check(drafter.bound)


def test_it_is_described_by_its_numbers():
  described = decoding.describe(drafts_of(3))
  assert described['verification']['head'] == {
    'type': 'FirstLayers',
    'layers': 3,
    'weights': {'type': 'int8'},
  }

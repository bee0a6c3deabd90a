"""Law 11: with verification the output is the full model's, to the token.

Whatever the exit rule, the number of drafts, the sampler (with the same key)
and what rows share the batch. The toy decoder's numbers are whole, so nothing
can hide behind a tie.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy
from scipy import stats

from calm_jax import decoding, exits

L, T, EOS_ID = 4, 12, 9
LOOPS = (
  decoding.WhileDepthLoop(),
  decoding.UnrolledDepthLoop(),
  decoding.CompactingDepthLoop(),
)
INPUTS = np.array([[1], [2], [3], [5]])
# The toy's tokens follow from the first one alone: rows begin differently.
PREFIX = np.array([[3], [2], [0], [7]])
MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)


def verified(rule, tokens=3, stop_below=0.0, block_sizes=(1, 2)):
  return decoding.ComputePolicy(
    exit_rule=rule,
    cache_fill=decoding.CatchUp(block_sizes),
    verification=decoding.VerifyEvery(tokens, stop_below),
  )


def schedule(seed):
  """Returns a rule of random depths, shallow for the most part: [B, T]."""
  rng = np.random.default_rng(seed)
  layers = rng.integers(1, L + 1, (len(INPUTS), T))
  return exits.ScheduledExit(
    np.where(rng.random(layers.shape) < 0.7, 1, layers)
  )


RULES = {
  'fixed': exits.FixedExit(2),
  'margin': MARGIN,
  'scheduled': schedule(0),
  'similarity': exits.ConfidenceExit(exits.StateSimilarity(), 0.5),
}


def generate(policy, *, depth_loop=LOOPS[0], inputs=INPUTS, **options):
  options = dict(max_length=T, eos_id=EOS_ID) | options
  if inputs is INPUTS:
    options = dict(forced_prefix=PREFIX) | options
  result = decoding.generate(
    toy.toy_bound(L, depth_loop=depth_loop), inputs, policy=policy, **options
  )
  return jax.tree.map(np.asarray, result)


def assert_same_output(result, full):
  for field in ('tokens', 'lengths'):
    np.testing.assert_array_equal(getattr(result, field), getattr(full, field))
  np.testing.assert_allclose(result.scores, full.scores, atol=1e-4)


@pytest.mark.parametrize(
  ('name', 'depth_loop'),
  [
    ('margin', LOOPS[0]),
    *(
      pytest.param(name, loop, marks=pytest.mark.slow)
      for name, loop in itertools.product(RULES, LOOPS)
      if (name, loop) != ('margin', LOOPS[0])
    ),
  ],
)
def test_says_what_the_full_model_says(name, depth_loop):
  full = generate(None, depth_loop=depth_loop)
  assert len(set(full.lengths.tolist())) > 1, 'no row ended before another'
  unchecked = dataclasses.replace(
    verified(RULES[name]), verification=decoding.NeverVerify()
  )
  assert (generate(unchecked).tokens != full.tokens).any(), (
    'drafts are all good'
  )
  accepted = 0
  for tokens in (1, 99):
    policy = verified(RULES[name], tokens)
    result = generate(policy, depth_loop=depth_loop)
    assert_same_output(result, full)
    work = result.work
    decoded = result.exit_layers > 0
    np.testing.assert_array_equal(decoded, full.exit_layers > 0)
    # Every token of the output has run all layers in the end.
    assert (work.attention + work.caught_up).sum() >= L * decoded.sum()
    assert (work.accepted <= work.verified).all()
    assert work.cycles.sum() > 0
    accepted += work.accepted.sum()
    # What a check replaced is the full model's; what it kept left early.
    early = decoded & (result.exit_layers < L)
    assert early.sum() <= work.accepted.sum()
  assert accepted > 0


@pytest.mark.slow
def test_drafts_are_as_many_as_pay():
  """Few where the full model agrees with few, many where with all of them."""
  adaptive = decoding.VerifyAdaptively(8, draft_cost=0.1)
  policy = dataclasses.replace(
    verified(exits.FixedExit(2), 8), verification=adaptive
  )
  full, result = generate(None), generate(policy)
  assert_same_output(result, full)
  state = adaptive.init(None, 3, T)
  three = np.arange(3)
  for _ in range(20):
    drafts = np.array([8, 8, 2])
    accepted = drafts * [0, 1, 1] - [0, 0, 1]
    state = adaptive.observe(state, three != 2, accepted, accepted < drafts)
  shares = np.asarray(state.accepted / state.judged)
  assert shares[0] < 0.1 and shares[1] > 0.95
  np.testing.assert_allclose(shares[2], 0.7)
  lengths = np.asarray(adaptive.best_lengths(state))
  assert lengths[0] == 1 and lengths[1] == 8
  for share, length in zip(shares, lengths, strict=True):
    expected = [
      sum(share**n for n in range(d + 1)) / (1 + 0.1 * d) for d in range(1, 9)
    ]
    assert length == 1 + np.argmax(expected)
  due = adaptive.due(state, np.array([1, 7, 1]), np.ones(3))
  np.testing.assert_array_equal(due, [True, False, lengths[2] == 1])


@pytest.mark.slow
def test_another_seed_of_depths_is_another_way_to_the_same_output():
  full = generate(None)
  for seed in range(1, 5):
    for tokens in (2, 5):
      assert_same_output(generate(verified(schedule(seed), tokens)), full)


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    pytest.param(
      dict(sampler=decoding.Temperature(2.0)), marks=pytest.mark.slow
    ),
    pytest.param(dict(sampler=decoding.TopK(3, 2.0)), marks=pytest.mark.slow),
    dict(sampler=decoding.Nucleus(0.9, 2.0), num_samples=3),
  ],
)
def test_draws_what_the_full_model_draws_with_the_same_key(options):
  options |= dict(rng=jax.random.key(7))
  full = generate(None, **options)
  result = generate(verified(exits.FixedExit(1), 4), **options)
  assert_same_output(result, full)
  assert 0 < result.work.accepted.sum() < result.work.verified.sum()


@pytest.mark.slow
def test_only_checked_tokens_are_handed_out():
  full = generate(None)
  state = decoding.start(
    toy.toy_bound(L),
    INPUTS,
    policy=verified(exits.FixedExit(1), 4),
    max_length=T,
    eos_id=EOS_ID,
    forced_prefix=PREFIX,
  )
  drafted = False
  for _ in range(200):
    state = decoding.advance(state, 1)
    seen = jax.tree.map(np.asarray, decoding.finish(state))
    here = np.arange(T) < seen.lengths[:, None]
    np.testing.assert_array_equal(seen.tokens, np.where(here, full.tokens, 0))
    assert ((seen.exit_layers > 0) == here).all()
    drafted |= bool((np.asarray(state.carry.positions) > seen.lengths).any())
    if not np.asarray(state.carry.alive).any():
      break
  assert drafted
  assert_same_output(seen, full)


@pytest.mark.slow
def test_a_doubtful_draft_is_the_last_before_a_check():
  # At ease 1 the margin after one layer is (1 - 1/9) / 2 = 0.44.
  inputs = np.array([[1]])
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.4)
  long = generate(verified(rule, 5), inputs=inputs)
  short = generate(verified(rule, 5, stop_below=0.5), inputs=inputs)
  assert_same_output(short, long)
  assert (short.work.verified <= short.work.cycles).all()
  assert (long.work.verified > long.work.cycles).any()


@pytest.mark.slow
def test_refilled_slots_forced_prefixes_and_suppressed_tokens():
  policy = verified(exits.FixedExit(2), 3)
  options = dict(max_length=T, eos_id=EOS_ID, sampler=decoding.Temperature(2.0))
  key = jax.random.key(3)
  full = generate(None, forced_prefix=None, rng=key, **options)
  requests = [row.tolist() for row in INPUTS]
  options |= dict(num_slots=2, source_length=1, steps=2, rng=key)
  found = dict(
    decoding.decode_queue(toy.toy_bound(L), requests, policy=policy, **options)
  )
  for row, result in found.items():
    np.testing.assert_array_equal(result.tokens, full.tokens[row])
  assert sorted(found) == [0, 1, 2, 3]
  options = dict(
    forced_prefix=np.array([[3, 4], [2, 0], [0, 0], [7, 0]]),
    suppressed_tokens=[5, 6],
  )
  assert_same_output(generate(policy, **options), generate(None, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('readout', 'depth_loop'),
  [
    pytest.param(decoding.FullVocabulary(), LOOPS[1], marks=pytest.mark.slow),
    (dataclasses.replace(cases.PRUNED, final='pruned'), LOOPS[0]),
    pytest.param(cases.FIRST, LOOPS[1], marks=pytest.mark.slow),
    pytest.param(cases.STREAMED, LOOPS[1], marks=pytest.mark.slow),
  ],
)
def test_on_t5_with_any_readout(readout, depth_loop):
  """A shortlist may lack the full model's token: that is one more bad draft."""
  source = np.random.default_rng(3).integers(2, cases.V, (4, cases.S))

  def run(policy):
    with jax.default_matmul_precision('highest'):
      return cases.host(
        decoding.generate(
          cases.bound(depth_loop),
          source,
          policy=policy,
          max_length=16,
          eos_id=cases.EOS_ID,
        )
      )

  full = run(None)
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.3)
  policy = dataclasses.replace(verified(rule, 4), readout=readout)
  result = run(policy)
  assert_same_output(result, full)
  assert result.work.accepted.sum() > 0


@pytest.mark.slow
def test_samples_follow_the_full_models_distribution():
  """Chi-square over the first two tokens; unchecked drafts fail it."""
  number, ease = 4000, 1
  inputs = np.full((number, 1), ease)
  options = dict(
    sampler=decoding.Temperature(1.5),
    rng=jax.random.key(5),
    max_length=2,
    eos_id=-1,
  )
  policy = verified(exits.FixedExit(1), 1)
  result = generate(policy, inputs=inputs, **options)
  unchecked = dataclasses.replace(policy, verification=decoding.NeverVerify())
  drafts = generate(unchecked, inputs=inputs, **options)
  # What the full model says: its logits after each first token.
  logits = toy_logits(ease)
  first = jax.nn.softmax(logits[0] / 1.5)
  second = jax.nn.softmax(logits[1] / 1.5, axis=-1)
  expected = np.asarray(first[:, None] * second, np.float64).ravel()
  expected *= number / expected.sum()
  assert expected.min() > 5

  def p_value(tokens):
    counts = np.bincount(tokens[:, 0] * 10 + tokens[:, 1], minlength=100)
    return stats.chisquare(counts, expected).pvalue

  assert p_value(result.tokens) > 0.01
  assert p_value(drafts.tokens) < 1e-6


def toy_logits(ease):
  """Returns the toy's logits at position 0, [10], and 1, [10 tokens, 10]."""
  bound = toy.toy_bound(L)

  def logits(tokens):
    cache = bound.start(bound.encode(np.array([[ease]])), len(tokens))
    positions = jnp.arange(len(tokens))
    hidden = bound.embed(jnp.array([tokens]), positions)
    for layer in range(L):
      cache = bound.fill_layer(layer, hidden, positions, cache)
      hidden = bound.attend(layer, hidden, positions, cache)
      hidden = bound.feed_forward(layer, hidden)
    return bound.logits(hidden)[0, -1]

  return logits([0]), jnp.stack([logits([0, token]) for token in range(10)])


@pytest.mark.parametrize(
  ('policy', 'message'),
  [
    (lambda: verified(exits.NeverExit()), 'give an exit rule'),
    (lambda: verified(MARGIN, 0), 'tokens of VerifyEvery'),
    (lambda: verified(MARGIN, 2, 1.5), 'stop_below of VerifyEvery'),
    (
      lambda: dataclasses.replace(
        verified(MARGIN), cache_fill=decoding.ProjectExitState()
      ),
      r'cache_fill=decoding.CatchUp\(\)',
    ),
    *(
      (
        lambda bad=bad: dataclasses.replace(
          verified(MARGIN), verification=decoding.VerifyAdaptively(**bad)
        ),
        f'{next(iter(bad))} of VerifyAdaptively',
      )
      for bad in (
        dict(tokens=0),
        dict(draft_cost=0.0),
        dict(memory=1.0),
        dict(first=float('nan')),
        dict(stop_below=-1.0),
      )
    ),
    (
      lambda: verified(exits.LayerBudget(MARGIN, per_token=2)),
      'no LayerBudget can be kept',
    ),
  ],
)
def test_what_cannot_be_checked_is_refused(policy, message):
  with pytest.raises(ValueError, match=message):
    generate(policy())


def test_beams_are_refused():
  with pytest.raises(ValueError, match='BeamSearch reorders rows'):
    generate(verified(MARGIN), sampler=decoding.BeamSearch(2))


def test_full_at_any_threshold():
  policy = verified(MARGIN)
  assert decoding.is_full_at_one(policy)
  assert decoding.full_model(policy).verification == decoding.NeverVerify()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('rule', 'loop'),
  [
    (exits.FixedExit(1), LOOPS[0]),
    pytest.param(MARGIN, LOOPS[1], marks=pytest.mark.slow),
  ],
)
def test_outputs_as_long_as_the_buffer(rule, loop):
  """No EOS: the last position has no later one to take it along."""
  for length in (1, 3):
    options = dict(max_length=length, eos_id=-1, depth_loop=loop)
    assert_same_output(
      generate(verified(rule, 3), **options), generate(None, **options)
    )

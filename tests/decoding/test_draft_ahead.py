"""Law 11 for drafts of a head, whatever the head.

The toy's tokens follow from the first one: a head that looks the next token up
by the last two is right as often as its table is, and every kind of round comes
up: all drafts kept, some, none, an EOS among them.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy

from calm_jax import decoding, exits
from calm_jax.draft_heads import DraftHead
from calm_jax.pytrees import register_pytree

L, T, EOS_ID, V = 4, 12, 9, toy.VOCAB_SIZE
LOOPS = (
  decoding.WhileDepthLoop(),
  decoding.UnrolledDepthLoop(),
  decoding.CompactingDepthLoop(),
)
INPUTS = np.array([[1], [2], [3], [5]])
PREFIX = np.array([[3], [2], [0], [7]])


@register_pytree
@dataclasses.dataclass(frozen=True)
class TableHead:
  """Says what a table [V, V] says of the last two tokens."""

  table: np.ndarray

  num_tokens = 2
  products = 5

  def check(self, decoder):
    return TableHead(jnp.asarray(self.table, jnp.int32))

  def __call__(self, state, embeddings):
    last, before = jnp.moveaxis(embeddings[..., 0], -1, 0).astype(jnp.int32)
    token = self.table[last, before].astype(jnp.float32)
    return jnp.stack([token, jnp.full_like(token, 2.0)], axis=-1)


def table_head(full, faults=0.3):
  """Returns a head that is right on the full model's outputs, mostly."""
  table = np.zeros((V, V), int)
  tokens = np.pad(full.tokens, ((0, 0), (1, 0)))
  for before, last, token in zip(
    tokens[:, :-2].ravel(),
    tokens[:, 1:-1].ravel(),
    tokens[:, 2:].ravel(),
    strict=True,
  ):
    table[last, before] = token
  wrong = np.random.default_rng(0).random(table.shape) < faults
  return TableHead(np.where(wrong, (table + 1) % V, table))


def ahead(head, tokens=3, stop_below=0.0, block_sizes=(1, 2)):
  return decoding.ComputePolicy(
    cache_fill=decoding.CatchUp(block_sizes),
    verification=decoding.DraftAhead(
      head, decoding.VerifyEvery(tokens, stop_below)
    ),
  )


def generate(policy, *, depth_loop=LOOPS[0], **options):
  options = dict(max_length=T, eos_id=EOS_ID, forced_prefix=PREFIX) | options
  result = decoding.generate(
    toy.toy_bound(L, depth_loop=depth_loop), INPUTS, policy=policy, **options
  )
  return jax.tree.map(np.asarray, result)


def assert_same_output(result, full):
  for field in ('tokens', 'lengths'):
    np.testing.assert_array_equal(getattr(result, field), getattr(full, field))
  np.testing.assert_allclose(result.scores, full.scores, atol=1e-4)


@pytest.mark.parametrize(
  ('depth_loop', 'tokens', 'faults'),
  [
    (LOOPS[0], 3, 0.3),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in itertools.product(LOOPS, (1, 3, 99), (0.0, 0.3))
      if case != (LOOPS[0], 3, 0.3)
    ),
  ],
)
def test_says_what_the_full_model_says(depth_loop, tokens, faults):
  full = generate(None, depth_loop=depth_loop)
  assert len(set(full.lengths.tolist())) > 1, 'no row ended before another'
  policy = ahead(table_head(full, faults), tokens)
  result = generate(policy, depth_loop=depth_loop)
  assert_same_output(result, full)
  np.testing.assert_array_equal(result.exit_layers, full.exit_layers)
  work = result.work
  assert 0 < work.accepted.sum() < work.verified.sum()
  assert (work.accepted <= work.verified).all()
  assert (work.verified <= tokens * work.cycles).all()
  # A draft is one run of the head, and its position runs layers only later.
  np.testing.assert_array_equal(
    work.extra_products.sum(axis=1), 5 * work.verified.sum(axis=1)
  )
  np.testing.assert_array_equal(
    work.caught_up.sum(axis=1), L * work.verified.sum(axis=1)
  )
  assert work.attention.sum() < full.work.attention.sum()
  # The first token has no state to draft from, and a draft its probability.
  assert np.isnan(result.confidences[:, 0]).all()
  assert np.isfinite(result.confidences).any()


@pytest.mark.parametrize(
  'options',
  [
    pytest.param(
      dict(sampler=decoding.Nucleus(0.9, 2.0), num_samples=3),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(forced_prefix=None, suppressed_tokens=[5, 6]), marks=pytest.mark.slow
    ),
    # No EOS: the last position has no later one to take it along.
    pytest.param(dict(max_length=3, eos_id=-1), marks=pytest.mark.slow),
    pytest.param(dict(max_length=1), marks=pytest.mark.slow),
  ],
)
def test_whatever_the_tokens_are_chosen_by(options):
  options |= dict(rng=jax.random.key(7))
  full = generate(None, **options)
  policy = ahead(table_head(generate(None), 0.0), 4)
  result = generate(policy, **options)
  assert_same_output(result, full)
  assert (result.work.accepted.sum() > 0) == (result.tokens.shape[-1] > 1)


@pytest.mark.slow
def test_as_many_drafts_as_pay():
  """The schedule of checks is another's, here one that learns."""
  full = generate(None)
  made = []
  for faults in (0.0, 0.9):
    policy = dataclasses.replace(
      ahead(table_head(full, faults)),
      verification=decoding.DraftAhead(
        table_head(full, faults),
        decoding.VerifyAdaptively(6, draft_cost=0.1, memory=0.5),
      ),
    )
    result = generate(policy)
    assert_same_output(result, full)
    made.append(result.work.verified.sum() / result.work.cycles.sum())
  assert made[0] > made[1]


@pytest.mark.slow
def test_a_doubtful_draft_is_the_last_before_a_check():
  head = table_head(generate(None), 0.0)
  result = generate(ahead(head, 5, stop_below=0.9))
  assert_same_output(result, generate(None))
  assert (result.work.verified <= 1).all()


@pytest.mark.slow
def test_streamed_and_refilled_rows_hold_checked_tokens_only():
  """A step is a round, and rows of a batch are at different ones."""
  full = generate(None, forced_prefix=None, max_length=8)
  requests = [row.tolist() for row in INPUTS]
  found = dict(
    decoding.decode_queue(
      toy.toy_bound(L),
      requests,
      policy=ahead(table_head(full)),
      max_length=8,
      eos_id=EOS_ID,
      num_slots=2,
      source_length=1,
      steps=2,
    )
  )
  for row, result in found.items():
    np.testing.assert_array_equal(result.tokens, full.tokens[row])
  assert sorted(found) == [0, 1, 2, 3]


def random_head(size=cases.CONFIG.embed_dim, width=8, seed=0):
  rng = np.random.default_rng(seed)
  return DraftHead(
    entry=rng.normal(size=(3, size, width)) / 4.0,
    bias=rng.normal(size=width),
    back=rng.normal(size=(width, size)) / 4.0,
  )


@pytest.mark.parametrize(
  ('readout', 'loop'),
  [
    pytest.param(decoding.FullVocabulary(), LOOPS[1], marks=pytest.mark.slow),
    pytest.param(cases.STREAMED, LOOPS[0], marks=pytest.mark.slow),
    pytest.param(
      dataclasses.replace(cases.PRUNED, final='pruned'),
      LOOPS[0],
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_head_of_random_weights_on_t5(readout, loop):
  def run(policy):
    with jax.default_matmul_precision('highest'):
      return cases.host(
        decoding.generate(
          cases.bound(loop),
          cases.inputs(),
          policy=policy,
          max_length=cases.T,
          eos_id=cases.EOS_ID,
        )
      )

  # Of this seed a few drafts are right.
  policy = dataclasses.replace(ahead(random_head(seed=5)), readout=readout)
  result = run(policy)
  assert_same_output(result, run(None))
  assert 0 < result.work.accepted.sum() < result.work.verified.sum()


@pytest.mark.parametrize(
  ('policy', 'message'),
  [
    (
      lambda: dataclasses.replace(
        ahead(random_head(2)), exit_rule=exits.FixedExit(2)
      ),
      'FixedExit would draft with early exits; leave exit_rule',
    ),
    (
      lambda: dataclasses.replace(
        ahead(random_head(2)), cache_fill=decoding.ProjectExitState()
      ),
      r'cache_fill=decoding.CatchUp\(\)',
    ),
    (lambda: ahead(random_head(3)), r'for this decoder they are \[1 \+ n, 2,'),
    (
      lambda: ahead(
        dataclasses.replace(random_head(2), bias=np.zeros(7)),
      ),
      r'bias \[7\] and back \[8, 2\]',
    ),
    (
      lambda: ahead(
        dataclasses.replace(random_head(2), bias=np.full(8, np.nan)),
      ),
      'bias of the draft head nan',
    ),
    (lambda: ahead('runs.load_draft_head'), "is 'runs.load_draft_head'; give"),
    (
      lambda: decoding.ComputePolicy(verification=random_head(2)),
      r'holds a DraftHead, which does not say .*DraftAhead\(head\)',
    ),
    (lambda: ahead(random_head(2), 0), 'NeverVerify|tokens of VerifyEvery'),
    (lambda: ahead(random_head(2), 2, 2.0), 'stop_below of VerifyEvery 2.0'),
    (
      lambda: decoding.ComputePolicy(
        cache_fill=decoding.CatchUp(),
        verification=decoding.DraftAhead(
          random_head(2), decoding.NeverVerify()
        ),
      ),
      'when of DraftAhead is NeverVerify, which says of no draft',
    ),
  ],
)
def test_what_cannot_be_drafted_is_refused(policy, message):
  with pytest.raises(ValueError, match=message):
    generate(policy())

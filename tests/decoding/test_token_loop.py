"""The token loop on the toy decoder, whose answers are worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits

INPUTS = np.array([[1, 2], [2, 0]])
LOOPS = (decoding.WhileDepthLoop(), decoding.UnrolledDepthLoop())
MARGIN = exits.SoftmaxMargin()


def generate(
  rule=None,
  *,
  inputs=INPUTS,
  max_length=4,
  eos_id=-1,
  depth_loop=None,
  **options,
):
  slots = {} if rule is None else {'exit_rule': rule}
  if 'cache_fill' in options:
    slots['cache_fill'] = options.pop('cache_fill')
  return decoding.generate(
    toy.toy_bound(depth_loop=depth_loop),
    inputs,
    policy=decoding.ComputePolicy(**slots),
    max_length=max_length,
    eos_id=eos_id,
    **options,
  )


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('depth_loop', LOOPS)
@pytest.mark.parametrize(
  ('rule', 'tokens', 'layers'),
  [
    (exits.NeverExit(), toy.FULL_TOKENS, (3, 3, 3, 3)),
    (exits.FixedExit(1), toy.EXIT_1_TOKENS, (1, 1, 1, 1)),
    (exits.ScheduledExit([2, 1, 3]), toy.EXIT_213_TOKENS, (2, 1, 3)),
  ],
)
def test_tokens_by_hand(rule, tokens, layers, depth_loop):
  result = generate(rule, max_length=len(tokens), depth_loop=depth_loop)
  np.testing.assert_array_equal(result.tokens, [tokens] * 2)
  np.testing.assert_array_equal(result.exit_layers, [layers] * 2)
  # Row 0 has ease 1: its best probability after k layers is k / (k + 1).
  scores = sum(np.log(k / (k + 1)) for k in layers)
  np.testing.assert_allclose(result.scores[0], scores, rtol=1e-5)


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_first_exit_fill_by_hand(depth_loop):
  result = generate(
    exits.ScheduledExit([2, 1, 3]),
    max_length=3,
    cache_fill=decoding.ProjectFirstExitState(),
    depth_loop=depth_loop,
  )
  np.testing.assert_array_equal(
    result.tokens, [toy.EXIT_213_FIRST_EXIT_TOKENS] * 2
  )


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_rows_exit_one_by_one(depth_loop):
  """Margins are (k - 1/9) / (k + 1), and k grows by 1 or by 2 per layer."""
  result = generate(exits.ConfidenceExit(MARGIN, 0.6), depth_loop=depth_loop)
  np.testing.assert_array_equal(result.exit_layers, [[2] * 4, [1] * 4])
  np.testing.assert_allclose(result.confidences, 17 / 27, atol=1e-6)
  np.testing.assert_array_equal(result.tokens[1], toy.EXIT_1_TOKENS)
  # Row 0 went on at layer 1, with k = 1; row 1 at no layer.
  rejected = result.rejected_confidences
  np.testing.assert_allclose(rejected[0], (1 - 1 / 9) / 2, atol=1e-6)
  np.testing.assert_array_equal(rejected[1], -np.inf)


def test_the_last_layer_ends_every_row():
  result = generate(exits.ConfidenceExit(MARGIN, 0.75))
  np.testing.assert_array_equal(result.exit_layers, [[3] * 4, [2] * 4])
  np.testing.assert_allclose(result.confidences[0], 26 / 36, atol=1e-6)


def test_confidence_is_nan_where_nothing_looked():
  result = generate(exits.ConfidenceExit(MARGIN, 0.99, interval=2))
  assert not np.isnan(result.confidences).any()  # looks at 1 and 3
  result = generate(
    exits.ConfidenceExit(MARGIN, 0.99, minimum_exit_layer=2, interval=2)
  )
  np.testing.assert_array_equal(result.exit_layers, 3)
  assert np.isnan(result.confidences).all()  # looks at 2, ends at 3
  assert np.isfinite(result.rejected_confidences).all()


def test_rows_end_at_eos_and_are_left_alone():
  rule = exits.ConfidenceExit(MARGIN, 0.6)
  together = generate(rule, eos_id=4, max_length=6)
  np.testing.assert_array_equal(together.lengths, [4, 3])
  np.testing.assert_array_equal(together.tokens[1], [1, 2, 4, 0, 0, 0])
  np.testing.assert_array_equal(together.exit_layers[1], [1] * 3 + [-1] * 3)
  assert np.isnan(together.confidences[1, 3:]).all()
  np.testing.assert_allclose(
    together.scores[1], 3 * np.log(2 / 3), rtol=1e-5
  )  # EOS included


def test_an_ended_row_holds_nobody_back():
  """Row 1 ends at once; afterwards the slow row 0 alone decides the depth."""
  rule = exits.FixedExit(np.array([1, 3]))
  state = decoding.start(
    toy.toy_bound(),
    INPUTS,
    policy=decoding.ComputePolicy(exit_rule=rule),
    max_length=4,
    eos_id=3,
  )
  state = decoding.advance(state, 2)
  np.testing.assert_array_equal(state.carry.alive, [True, False])
  values = np.asarray(state.carry.cache['values'])
  assert (values[1, :, 1:] == 0).all(), 'an ended row was written'
  result = decoding.finish(decoding.advance(state))
  np.testing.assert_array_equal(result.tokens[0], toy.EXIT_1_TOKENS)
  np.testing.assert_array_equal(result.lengths, [4, 1])


@pytest.mark.parametrize('cuts', [[1, 1, 1, 1], [3, 5], [0, 4]])
def test_pieces_make_the_whole(cuts):
  rule = exits.ConfidenceExit(MARGIN, 0.6)
  whole = generate(rule)
  state = decoding.start(
    toy.toy_bound(),
    INPUTS,
    policy=decoding.ComputePolicy(exit_rule=rule),
    max_length=4,
    eos_id=-1,
  )
  results = []
  for steps in cuts:
    state = decoding.advance(state, steps)
    results.append(decoding.finish(state))
  assert_same(results[-1], whole)
  # Earlier results outlive the donation of the state they were taken from.
  done = cuts[0]
  np.testing.assert_array_equal(results[0].lengths, [done, done])
  np.testing.assert_array_equal(
    results[0].tokens[:, :done], whole.tokens[:, :done]
  )


def test_the_carry_is_donated_and_the_policy_is_not():
  targets = jnp.asarray([toy.FULL_TOKENS] * 2)
  policy = decoding.ComputePolicy(exit_rule=exits.OracleExit(targets))
  state = decoding.start(
    toy.toy_bound(),
    INPUTS,
    policy=policy,
    max_length=4,
    eos_id=-1,
  )
  advanced = decoding.advance(state)
  assert state.carry.cache['values'].is_deleted()
  assert not targets.is_deleted()
  np.testing.assert_array_equal(
    advanced.policy.exit_rule.target_tokens, targets
  )
  again = generate(exits.OracleExit(targets))
  assert_same(again, decoding.finish(advanced))


def decode(params, inputs, threshold, key, depth_loop=LOOPS[0]):
  return decoding.generate(
    decoding.bind(toy.toy_decoder(), params, depth_loop=depth_loop),
    inputs,
    policy=decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(MARGIN, threshold)
    ),
    sampler=decoding.Temperature(0.8),
    rng=key,
    num_samples=2,
    max_length=3,
    eos_id=8,
  )


def assert_agree(one, other):
  for field in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
  for field in ('scores', 'confidences'):
    np.testing.assert_allclose(
      getattr(one, field), getattr(other, field), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize('depth_loop', LOOPS)
def test_inside_another_program(depth_loop):
  arguments = (toy.toy_params(), INPUTS, 0.6, jax.random.key(3))
  inside = jax.jit(decode, static_argnames='depth_loop')
  assert_agree(
    inside(*arguments, depth_loop=depth_loop),
    decode(*arguments, depth_loop=depth_loop),
  )


@pytest.mark.slow
@pytest.mark.parametrize('depth_loop', LOOPS)
def test_without_any_program(depth_loop):
  arguments = (toy.toy_params(), INPUTS, 0.6, jax.random.key(3))
  with jax.disable_jit():  # every operation on its own
    bare = decode(*arguments, depth_loop=depth_loop)
  assert_agree(bare, decode(*arguments, depth_loop=depth_loop))


def test_samples_share_the_encoder_and_differ():
  options = dict(
    sampler=decoding.Temperature(3.0), rng=jax.random.key(0), max_length=4
  )
  rule = exits.ConfidenceExit(MARGIN, np.array([0.6, 0.5]))
  many = generate(rule, num_samples=5, **options)
  assert many.tokens.shape == (2, 5, 4)
  assert many.exit_layers.shape == many.confidences.shape == (2, 5, 4)
  assert many.scores.shape == many.lengths.shape == (2, 5)
  assert len(np.unique(many.tokens[0], axis=0)) > 1
  # Row order and per-row numbers survive the repetition: ease is 1 and 2.
  np.testing.assert_array_equal(many.exit_layers[0], 2)
  np.testing.assert_array_equal(many.exit_layers[1], 1)
  # Sample 0 of many is the sample of one.
  one = generate(rule, **options)
  np.testing.assert_array_equal(many.tokens[:, 0], one.tokens)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(inputs=np.zeros((0, 3), int)), r'shape \[0, 3\]'),
    (dict(inputs=np.zeros((2, 0), int)), r'shape \[2, 0\]'),
    (dict(inputs=np.array([1, 2])), r'shape \[2\]'),
    (dict(inputs=np.array([[1.5]])), 'float64'),
    (dict(inputs=np.array([[1, 2], [0, 0]])), 'row 1 .* padding'),
    (dict(inputs=np.array([[1, 10]])), 'token id 10 in row 0'),
    (dict(inputs=np.array([[1, 1], [1, -3]])), 'token id -3 in row 1'),
    (dict(inputs=[[]]), 'shape'),
    (dict(max_length=0), 'max_length 0'),
    (dict(max_length=2.0), 'max_length 2.0'),
    (dict(num_samples=0), 'num_samples 0'),
    (dict(eos_id=10), 'eos_id 10'),
    (dict(sampler=decoding.Temperature()), 'rng=jax.random.key'),
    (
      dict(
        sampler=decoding.Temperature(),
        rng=np.zeros((3, 2), np.uint32),
      ),
      r'\[3\]',
    ),
    (dict(sampler=decoding.Temperature(), rng=np.float32(3)), 'float32'),
  ],
)
def test_bad_input_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    generate(**options)


def test_bad_policy_is_named_before_anything_runs():
  with pytest.raises(ValueError, match='threshold 1.3'):
    generate(exits.ConfidenceExit(MARGIN, 1.3))

"""A depth per request, by hand, and all ways a decode can begin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import routed_decoder as routed
from fakes import toy_decoder as toy

from calm_jax import decoding, deployment, evaluation, exits, interfaces

INPUTS = np.array([[1, 0, 0], [1, 2, 0], [3, 1, 2], [2, 0, 0]])
DEPTHS = [1, 2, 3, 1]
T = 4
RULE = exits.RoutedExit(routed.ROUTER, 0.5)
LOOP = decoding.WhileDepthLoop()


def generate(rule=RULE, inputs=INPUTS, **options):
  options = {'max_length': T, 'eos_id': -1, **options}
  policy = decoding.as_policy(rule)
  bound = routed.routed_bound(depth_loop=LOOP)
  return decoding.generate(bound, inputs, policy=policy, **options)


def confidences(router, pooled, lengths):
  router = router.check(routed.DECODER)
  return np.asarray(jax.jit(exits.Router.confidences)(router, pooled, lengths))


def test_every_token_runs_the_layers_of_its_request():
  result = generate()
  for row, depth in enumerate(DEPTHS):
    assert set(np.asarray(result.exit_layers[row]).tolist()) == {depth}
    length = np.count_nonzero(INPUTS[row])
    np.testing.assert_allclose(
      result.confidences[row],
      routed.expected_confidence(length, depth),
      rtol=1e-5,
    )
    # What is not asked costs nothing: one read of the output matrix each.
    assert (np.asarray(result.work.checks[row]) == 1).all()
    assert (np.asarray(result.work.attention[row]) == depth).all()
  # The rows of exit layer 1 and of all layers are those worked out by hand.
  assert tuple(result.tokens[0].tolist()) == toy.EXIT_1_TOKENS
  assert tuple(result.tokens[2].tolist()) == toy.FULL_TOKENS


def test_a_higher_threshold_never_takes_fewer_layers():
  before, rules = np.zeros(4), {}
  for threshold in (0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-6, 1.0):
    rules[threshold] = dataclasses.replace(RULE, threshold=threshold)
    depths = np.asarray(
      decoding.routed_depths(routed.routed_bound(), INPUTS, rules[threshold])
    )
    assert (depths >= before).all()
    before = depths
  assert (before == 3).all()
  assert (generate(rules[1.0]).exit_layers == 3).all()
  assert (generate(rules[0.0]).exit_layers == 1).all()


def test_the_routed_depths_are_those_of_the_decode():
  bound = routed.routed_bound()
  assert decoding.routed_depths(bound, INPUTS, RULE).tolist() == DEPTHS
  budget = exits.LayerBudget(RULE, per_token=2)
  assert decoding.routed_depths(bound, INPUTS, budget).tolist() == DEPTHS
  kept = decoding.ComputePolicy(
    exit_rule=RULE, layer_plan=decoding.KeepLayers(2)
  )
  work = jax.device_get(generate(kept).work)
  ran = [
    row[decoded].max()
    for row, decoded in zip(work.attention, work.checks > 0, strict=True)
  ]
  assert decoding.routed_depths(bound, INPUTS, kept).tolist() == ran
  with pytest.raises(ValueError, match='FixedExit gives requests no depth'):
    decoding.routed_depths(bound, INPUTS, exits.FixedExit(2))


def test_a_router_by_hand():
  rng = np.random.default_rng(0)
  router = exits.Router(
    bias=rng.normal(size=2),
    state=rng.normal(size=(2, 3)),
    length_weights=rng.normal(size=3),
    hidden_bias=rng.normal(size=3),
    out=rng.normal(size=(3, 2)),
  )
  pooled, length = np.array([3.0, 4.0]), 7
  inner = pooled / np.sqrt(12.5) @ router.state
  inner = inner + np.log(length) * router.length_weights + router.hidden_bias
  scores = jax.nn.gelu(inner) @ router.out + router.bias
  suffice = 1.0 / (1.0 + np.exp(scores))
  wanted = [*np.maximum.accumulate(suffice), 1.0]
  found = confidences(router, pooled[None].astype('f4'), jnp.array([length]))
  np.testing.assert_allclose(found[0], wanted, rtol=1e-5)


def test_confidences_do_not_fall_where_scores_cross():
  """Depth 2 is said to suffice less often than depth 1: it cannot."""
  crossed = dataclasses.replace(routed.ROUTER, bias=np.array([-3.0, 3.0]))
  short = dataclasses.replace(crossed, length_weights=np.zeros(1))
  (found,) = confidences(short, np.ones((1, 2), 'f4'), jnp.array([1]))
  assert found[0] == found[1] > 0.9 and found[2] == 1.0


@pytest.mark.parametrize(
  ('router', 'message'),
  [
    (dict(bias=np.zeros(3)), r'bias of the router has shape \[3\]'),
    (dict(state=np.zeros((4, 1))), r'state of the router has shape \[4, 1\]'),
    (dict(length_weights=np.zeros(2)), r'and length_weights \[2\]'),
    (dict(out=np.zeros((1, 1))), 'one of hidden_bias and out'),
    (dict(bias=np.full(2, np.nan)), 'bias of the router'),
    (
      dict(hidden_bias=np.zeros(()), out=np.zeros((1, 1))),
      r'hidden_bias of the router has shape \[\]',
    ),
  ],
)
def test_a_router_of_another_model_is_refused(router, message):
  rule = exits.RoutedExit(dataclasses.replace(routed.ROUTER, **router), 0.5)
  with pytest.raises(ValueError, match=message):
    generate(rule)


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (exits.RoutedExit(routed.ROUTER, 1.5), 'threshold 1.5'),
    (exits.RoutedExit(routed.ROUTER, np.nan), 'threshold'),
    (exits.RoutedExit(routed.ROUTER, np.zeros(3)), 'threshold'),
    (exits.RoutedExit(exits.SoftmaxMargin(), 0.5), 'give an exits.Router'),
    (
      exits.RoutedExit(
        routed.ROUTER, exits.DecayingThreshold(0.5, temperature=4.0)
      ),
      'a request has one depth',
    ),
  ],
)
def test_bad_rules_are_refused(rule, message):
  with pytest.raises(ValueError, match=message):
    generate(rule)


def test_a_class_in_place_of_a_threshold_is_named():
  with pytest.raises(TypeError, match='written without parentheses'):
    generate(exits.RoutedExit(routed.ROUTER, exits.ConstantThreshold))


def test_a_decoder_that_cannot_sum_its_source_up_is_refused():
  with pytest.raises(ValueError, match='has no pool_source: give its Layered'):
    decoding.generate(toy.toy_bound(), INPUTS, policy=RULE, max_length=T)
  budget = exits.LayerBudget(RULE, per_token=2)
  with pytest.raises(ValueError, match='has no pool_source'):
    decoding.generate(toy.toy_bound(), INPUTS, policy=budget, max_length=T)
  with pytest.raises(ValueError, match='this decoder has no pool_source'):
    toy.toy_bound().pool_source({})


def test_no_other_rule_has_the_source_summed_up():
  def refuse(encoded):
    raise AssertionError('nobody asked')

  decoder = dataclasses.replace(routed.DECODER, pool_source=refuse)
  bound = decoding.bind(decoder, toy.toy_params(), depth_loop=LOOP)
  rule = exits.LayerBudget(exits.FixedExit(2), per_token=2)
  decoding.start(bound, INPUTS, policy=rule, max_length=T)
  with pytest.raises(AssertionError, match='nobody asked'):
    decoding.start(bound, INPUTS, policy=RULE, max_length=T)
  assert not interfaces.reads_source(rule) and interfaces.reads_source(RULE)


WRAPPED = dict(
  forced_prefix=np.array([[5], [0], [5], [0]]),
  sampler=decoding.Temperature(),
  rng=jax.random.key(0),
  num_samples=2,
)


def test_wrappers_hand_the_source_on():
  state = decoding.start(
    routed.routed_bound(depth_loop=LOOP),
    INPUTS,
    policy=exits.LayerBudget(RULE, per_token=2),
    max_length=T,
    **WRAPPED,
  )
  _, budget = state.carry.policy.exit_rule
  wanted = [
    [routed.expected_confidence(length, depth) for depth in (1, 2, 3)]
    for length in np.repeat((INPUTS > 0).sum(axis=1), 2)
  ]
  np.testing.assert_allclose(budget.rule.confidences, wanted, rtol=1e-5)


@pytest.mark.slow
def test_wrapped_rules_run_the_layers_of_their_request():
  """A budget, a forced prefix and samples, each row with its request's."""
  result = generate(
    exits.LayerBudget(RULE, per_token=2),
    **WRAPPED,
  )
  wanted = np.tile(np.minimum(DEPTHS, 2)[:, None, None], (1, 2, T))
  wanted[[0, 2], :, 0] = 3
  np.testing.assert_array_equal(result.exit_layers, wanted)


@pytest.mark.slow
def test_beams_run_the_layers_of_their_request():
  sampler = decoding.BeamSearch(num_beams=2)
  result = generate(sampler=sampler, num_samples=2)
  wanted = np.tile(np.array(DEPTHS)[:, None, None], (1, 2, T))
  np.testing.assert_array_equal(result.exit_layers, wanted)


@pytest.mark.slow
def test_a_refilled_slot_has_the_depth_of_its_request():
  requests = [row[row > 0].tolist() for row in INPUTS]
  results = decoding.decode_queue(
    routed.routed_bound(depth_loop=LOOP),
    [*requests, *requests],
    policy=RULE,
    num_slots=2,
    refill_at=1,
    source_length=3,
    max_length=T,
    eos_id=8,
  )
  for number, result in results:
    said = result.exit_layers[: result.lengths]
    assert set(said.tolist()) == {DEPTHS[number % 4]}, number


@pytest.mark.slow
def test_an_exported_program_routes(tmp_path):
  spec = deployment.ProgramSpec(
    source_length=3, max_length=T, eos_id=-1, policy=RULE
  )
  bound = routed.routed_bound(depth_loop=LOOP)
  deployment.export_artifact(bound, tmp_path / 'exported', spec)
  exported = deployment.load_artifact(tmp_path / 'exported')
  for threshold, depths in ((0.5, DEPTHS), (1.0, [3] * 4), (0.0, [1] * 4)):
    found = exported(INPUTS, threshold=threshold)
    assert found['exit_layers'][:, 0].tolist() == depths


@pytest.mark.slow
def test_drafts_at_a_routed_depth_are_checked():
  policy = decoding.ComputePolicy(
    exit_rule=RULE,
    cache_fill=decoding.CatchUp(),
    verification=decoding.VerifyEvery(2),
  )
  bound = routed.routed_bound(depth_loop=LOOP)
  options = dict(max_length=T, eos_id=-1)
  found, full = (
    decoding.generate(bound, INPUTS, policy=one, **options)
    for one in (policy, None)
  )
  np.testing.assert_array_equal(found.tokens, full.tokens)


def test_what_exits_say_beforehand_is_no_question_to_a_router():
  policy = decoding.ComputePolicy(exit_rule=RULE, cache_fill=decoding.CatchUp())
  bound = routed.routed_bound()
  assert not evaluation.follows_from_full(bound, policy)
  state = decoding.start(bound, INPUTS, policy=policy, max_length=T)
  with pytest.raises(ValueError, match='RoutedExit has no measure'):
    decoding.trace(state, np.zeros((4, T)), np.ones(4))


def test_a_setting_is_its_threshold():
  policy = decoding.ComputePolicy(exit_rule=RULE)
  assert decoding.threshold_path(policy) == 'exit_rule.threshold'
  assert decoding.is_full_at_one(policy)
  changed = decoding.with_setting(policy, 0.25)
  assert changed.exit_rule.thresholds(T).tolist() == [0.25] * T
  assert decoding.describe(changed) == decoding.describe(policy)
  assert exits.usual_thresholds(RULE)[0] == 0.95
  per_row = dataclasses.replace(RULE, threshold=np.array([0.1, 0.2]))
  with pytest.raises(ValueError, match='a number per row'):
    per_row.thresholds(T)


def test_batches_of_one_depth():
  batches = [
    {'encoder_input_tokens': INPUTS[:2], 'num_valid': 2, 'name': ['a', 'b']},
    {
      'encoder_input_tokens': INPUTS[2:],
      'num_valid': 2,
      'name': ['c', 'd'],
    },
    # A place that is left over, and other shapes.
    {
      'encoder_input_tokens': np.array([[1, 0, 0, 0], [0, 0, 0, 0]]),
      'num_valid': 1,
      'name': ['e', ''],
    },
  ]
  bound = routed.routed_bound(depth_loop=LOOP)
  found = evaluation.batches_by_depth(bound, batches, RULE)
  names = [one['name'][: one['num_valid']] for one in found]
  assert names == [['a', 'd'], ['b', 'c'], ['e']]
  first = found[0]['encoder_input_tokens']
  np.testing.assert_array_equal(first, INPUTS[[0, 3]])
  assert evaluation.batches_by_depth(bound, [], RULE) == []

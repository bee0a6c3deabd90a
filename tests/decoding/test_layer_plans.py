"""Layer plans: what they leave out, in any loop, and what goes with them.

The laws of all policies are in `test_policy_laws`; here is what plans promise
beyond them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, exits, model
from calm_jax.decoding.layer_plans import evenly_spaced
from calm_jax.interfaces import LayerWork, PlansAhead, StatelessSlot
from calm_jax.pytrees import register_pytree

LOOPS = {
  **decoding.DEPTH_LOOPS,
  'compacting pairs': decoding.CompactingDepthLoop(2),
}


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def decode(plan, depth_loop=cases.WHILE, **slots):
  policy = decoding.ComputePolicy(layer_plan=plan, **slots)
  return cases.host(
    decoding.generate(
      cases.bound(depth_loop),
      cases.inputs(),
      policy=policy,
      max_length=cases.T,
      eos_id=cases.EOS_ID,
    )
  )


def same(one, other):
  for field in ('tokens', 'exit_layers', 'lengths', 'work'):
    jax.tree.map(
      functools.partial(np.testing.assert_array_equal, err_msg=field),
      getattr(one, field),
      getattr(other, field),
    )
  np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@pytest.mark.parametrize('num_layers', [1, 2, 3, 12, 24])
def test_every_number_of_layers_can_be_kept(num_layers):
  """The reference code keeps others than asked for, or divides by zero."""
  for kept in range(1, num_layers + 1):
    layers = evenly_spaced(kept, num_layers)
    assert len(set(layers)) == kept
    assert list(layers) == sorted(layers)
    assert layers[0] == 0 and layers[-1] < num_layers
    if kept > 1:
      assert layers[-1] == num_layers - 1
      gaps = np.diff(layers)
      assert gaps.max() - gaps.min() <= 1


def test_kept_layers_are_the_model_that_has_no_others():
  kept = decode(cases.KEPT)
  config, params = model.truncate(
    cases.CONFIG,
    cases.params(),
    evenly_spaced(cases.KEPT.num_layers, cases.L),
  )
  bound = decoding.bind(
    model.as_layered_decoder(config), params, depth_loop=cases.WHILE
  )
  alone = cases.host(
    decoding.generate(
      bound, cases.inputs(), max_length=cases.T, eos_id=cases.EOS_ID
    )
  )
  for field in ('tokens', 'lengths', 'work'):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(kept, field),
      getattr(alone, field),
    )
  np.testing.assert_allclose(kept.scores, alone.scores, atol=1e-4)
  # A token leaves after the last layer, whatever its number.
  at_the_end = np.where(alone.exit_layers > 0, cases.L, -1)
  np.testing.assert_array_equal(kept.exit_layers, at_the_end)


def test_kept_layers_alone_have_cross_attention():
  """Where each layer has arrays of its own, the others have none at all."""
  policy = decoding.ComputePolicy(layer_plan=cases.KEPT)
  state = decoding.start(
    cases.bound(decoding.UnrolledDepthLoop()),
    cases.inputs(),
    policy=policy,
    max_length=cases.T,
  )
  cache = state.carry.cache
  for side in (cache.cross_key, cache.self_value):
    assert [leaf.shape[-2] > 0 for leaf in side] == [True, False, True, True]
  assert cache.max_length == cases.T


@pytest.mark.parametrize(
  'loop',
  [
    'unrolled',
    pytest.param('compacting', marks=pytest.mark.slow),
    pytest.param('compacting pairs', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize(
  'plan',
  [
    cases.KEPT,
    pytest.param(cases.SKIP_DECODE, marks=pytest.mark.slow),
    pytest.param(cases.SATURATED, marks=pytest.mark.slow),
  ],
  ids=lambda plan: type(plan).__name__,
)
def test_all_loops_say_the_same(plan, loop):
  same(decode(plan, LOOPS[loop]), decode(plan))


@pytest.mark.parametrize(
  'loop', ['while', pytest.param('unrolled', marks=pytest.mark.slow)]
)
def test_a_program_per_depth_is_one_with_masks(loop):
  """Law 7 of SkipDecode."""
  masked = dataclasses.replace(cases.SKIP_DECODE, segmented=False)
  same(decode(masked, LOOPS[loop]), decode(cases.SKIP_DECODE))


@pytest.mark.slow
@pytest.mark.parametrize(
  'loop', ['while', pytest.param('unrolled', marks=pytest.mark.slow)]
)
def test_a_token_that_never_left_is_at_the_last_layer(loop):
  """Whichever layers are in the program; so slot mates change nothing."""
  first = decoding.SkipDecode(
    cases.L, 2, warmup_layers=2, length=cases.T, segmented=False
  )
  for plan in (first, dataclasses.replace(first, segmented=True)):
    result = decode(plan, LOOPS[loop])
    decoded = result.exit_layers > 0
    assert decoded.sum() == result.lengths.sum()
    assert set(result.exit_layers[decoded]) == {cases.L}
    # The top layer did not run at the last positions.
    assert result.work.attention[decoded].min() == 2
  result = decode(decoding.KeepLayers(1), LOOPS[loop])
  assert set(result.exit_layers[result.exit_layers > 0]) == {cases.L}


def test_an_early_segment_notes_what_the_rule_saw():
  """As where the top layer is in the program: passed, without an exit."""
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0)
  result = decode(decoding.KeepLayers(1), exit_rule=rule)
  decoded = result.exit_layers > 0
  assert set(result.exit_layers[decoded]) == {cases.L}
  assert np.isnan(result.confidences[decoded]).all()
  assert (result.rejected_confidences[decoded] >= 0).all()
  assert (result.rejected_confidences[decoded] < 1).all()


def test_skip_decode_visits_as_many_layers_as_it_says():
  work = decode(cases.SKIP_DECODE).work
  decoded = work.checks > 0
  depths = decoded * np.array(cases.SKIP_DECODE.depths(cases.T))
  for column in ('attention', 'feed_forward', 'fills', 'projections'):
    np.testing.assert_array_equal(getattr(work, column), depths)
  assert len(set(depths[decoded])) == 3


@pytest.mark.parametrize(
  'segmented', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_slots_at_different_positions(segmented):
  """A queue serves rows that are ahead by the program of those behind."""
  plan = dataclasses.replace(cases.SKIP_DECODE, segmented=segmented)
  expected = decode(plan)
  results = dict(
    decoding.decode_queue(
      cases.bound(),
      [source[source > 0] for source in cases.inputs()],
      num_slots=2,
      steps=3,
      source_length=cases.S,
      policy=decoding.ComputePolicy(layer_plan=plan),
      max_length=cases.T,
      eos_id=cases.EOS_ID,
    )
  )
  assert len(set(expected.lengths)) > 1, 'no slot is ever refilled in between'
  for row in range(cases.B):
    one = jax.tree.map(lambda leaf, row=row: leaf[row], expected)
    same(jax.tree.map(np.asarray, results[row]), one)


def test_in_pieces_or_in_one_go():
  """Depths change within a call of `advance`, and between two."""
  policy = decoding.ComputePolicy(layer_plan=cases.SKIP_DECODE)
  state = decoding.start(
    cases.bound(),
    cases.inputs(),
    policy=policy,
    max_length=cases.T,
    eos_id=cases.EOS_ID,
  )
  while bool(state.carry.alive.any()):
    state = decoding.advance(state, 3)
  same(cases.host(decoding.finish(state)), decode(cases.SKIP_DECODE))


def test_a_length_that_was_left_open_is_that_of_the_decode():
  open_ = decoding.SkipDecode(4, 2)
  same(decode(open_), decode(dataclasses.replace(open_, length=cases.T)))
  policy = decoding.at_output_length(
    decoding.ComputePolicy(layer_plan=open_), 20
  )
  assert policy.layer_plan == dataclasses.replace(open_, length=20)


def test_saturated_feed_forwards_are_left_out_in_the_middle():
  result = decode(cases.SATURATED)
  left_out = result.work.attention - result.work.feed_forward
  assert set(np.unique(left_out)) == {0, 1}
  assert (left_out[:, 0] == 0).all(), 'the first position runs whole'
  # Attention runs everywhere, and no K/V is ever missing.
  decoded = result.exit_layers > 0
  np.testing.assert_array_equal(result.work.attention, cases.L * decoded)
  np.testing.assert_array_equal(result.work.projections, cases.L * decoded)
  update = dataclasses.replace(cases.SATURATED, measure='update')
  # |after - before| / |before| is far above .1 in these layers.
  same(decode(update), cases.decode('full'))
  loose = dataclasses.replace(update, threshold=0.0, first_positions=0)
  work = decode(loose).work
  np.testing.assert_array_equal(
    work.feed_forward, (cases.L - 1) * decoded_of(work)
  )


def decoded_of(work):
  return work.checks > 0


@register_pytree
@dataclasses.dataclass(frozen=True)
class LeaveOutTheSecond(PlansAhead, StatelessSlot):
  """Leaves the second layer out at odd positions; K/V of it are made."""

  every_layer = False
  same_everywhere = True  # So that exit rules are let through.

  def before(self, state, view):
    runs = jnp.not_equal(view.layer, 1) | (view.positions % 2 == 0)
    return state, LayerWork(attention=runs, feed_forward=runs)


@pytest.mark.parametrize(
  'loop', ['while', pytest.param('unrolled', marks=pytest.mark.slow)]
)
def test_an_exit_rule_does_not_look_at_a_layer_that_did_not_run(loop):
  """A state that nothing turned is as similar as can be, and says nothing."""
  rule = exits.ConfidenceExit(exits.StateSimilarity(), 0.9999)
  result = decode(LeaveOutTheSecond(), LOOPS[loop], exit_rule=rule)
  at_odd = result.exit_layers[:, 1::2]
  assert (at_odd[at_odd > 0] == cases.L).all()
  confidences = result.confidences[:, 1::2][at_odd > 0]
  assert (confidences[~np.isnan(confidences)] < 1.0).all()


def test_a_threshold_of_a_plan_is_a_setting():
  policy = decoding.ComputePolicy(layer_plan=cases.SATURATED)
  assert decoding.threshold_path(policy) == 'layer_plan.threshold'
  changed = decoding.with_setting(policy, 0.25).layer_plan
  assert changed == dataclasses.replace(cases.SATURATED, threshold=0.25)
  assert decoding.is_full_at_one(policy)
  kept = decoding.ComputePolicy(layer_plan=cases.KEPT)
  assert not decoding.is_full_at_one(kept)
  setting = {'layer_plan.num_layers': 2}
  assert decoding.with_setting(kept, setting).layer_plan.num_layers == 2
  assert decoding.full_model(kept).layer_plan == decoding.EveryLayer()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: decoding.SkipDecode(2, 4), 'min_layers 4 is more than max_layers'),
    (lambda: decoding.SkipDecode(3, 0), 'min_layers of SkipDecode 0 must be'),
    (lambda: decoding.SkipDecode(3, 2, 3), 'warmup_layers 3 are more than'),
    (lambda: decoding.SkipDecode(3, 2, length=0), 'length of SkipDecode 0'),
    (lambda: decode(decoding.SkipDecode(5, 2)), 'in 1..4'),
    (lambda: decode(decoding.KeepLayers(0)), 'num_layers of KeepLayers 0'),
    (lambda: decode(decoding.KeepLayers(5)), 'in 1..4'),
    (lambda: decode(decoding.KeepLayers(2.5)), 'KeepLayers 2.5'),
    (
      lambda: decode(decoding.SkipSaturatedFeedForward(1.5)),
      '1.5 is outside',
    ),
    (
      lambda: decode(decoding.SkipSaturatedFeedForward(0.9, measure='angle')),
      "'angle'; give cosine or update",
    ),
    (
      lambda: decode(cases.SKIP_DECODE, exit_rule=exits.FixedExit(2)),
      'SkipDecode leaves out layers below',
    ),
    (
      lambda: decode(
        cases.SKIP_DECODE, cache_fill=decoding.DeferredExitState()
      ),
      'use ProjectExitState',
    ),
    (
      lambda: decode(cases.SKIP_DECODE, cache_fill=decoding.CatchUp()),
      'the layer plan SkipDecode leaves some out',
    ),
    (
      lambda: decode(
        cases.KEPT, exit_rule=exits.LayerBudget(exits.NeverExit(), 20)
      ),
      'LayerBudget counts on every layer',
    ),
    (
      lambda: decode(
        cases.KEPT,
        exit_rule=exits.FixedExit(2),
        cache_fill=decoding.CatchUp(),
        verification=decoding.VerifyEvery(2),
      ),
      'checks drafts by the full model',
    ),
    (
      lambda: decode(exits.NeverExit()),
      'the slot layer_plan holds a NeverExit',
    ),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_class_is_no_plan():
  with pytest.raises(TypeError, match=r'give an object of it, KeepLayers\('):
    decode(decoding.KeepLayers)

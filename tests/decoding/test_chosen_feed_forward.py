"""Small twins in decoding: what runs, what it costs, and what is refused.

The laws of all policies are in `test_policy_laws`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import costs, decoding, exits
from calm_jax.decoding import token_loop
from calm_jax.interfaces import LayerWork, PlansAhead, PlanView, StatelessSlot
from calm_jax.pytrees import register_pytree
from calm_jax.small_twins import SmallTwins

TWINS = cases.TWINS.twins
UNROLLED = decoding.UnrolledDepthLoop()


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def started(plan, depth_loop=cases.WHILE, **slots):
  return decoding.start(
    cases.bound(depth_loop),
    cases.inputs(),
    policy=decoding.ComputePolicy(layer_plan=plan, **slots),
    max_length=cases.T,
    eos_id=cases.EOS_ID,
  )


def decode(plan, depth_loop=cases.WHILE, **slots):
  state = started(plan, depth_loop, **slots)
  if depth_loop == cases.WHILE:
    state = cases.poison(state)
  return cases.host(decoding.finish(decoding.advance(state)))


@pytest.mark.parametrize('twins', [None, TWINS])
@pytest.mark.parametrize('layer', [2, jnp.int32(2)])
def test_own_blocks_everywhere_are_the_full_model(twins, layer):
  """What is asked for is what `EveryLayer` asks for; law 2 decodes."""
  rows = jnp.zeros((cases.B,), jnp.int32)
  view = PlanView(
    layer=layer, positions=rows, hidden=rows, active=rows == 0, alive=rows == 0
  )
  plan = decoding.ChosenFeedForward((1,) * cases.L, twins)
  assert plan.before(None, view) == decoding.EveryLayer().before(None, view)


@pytest.mark.slow
def test_what_was_not_chosen_is_not_in_the_program():
  """Where layers are unrolled; each block's inner width tells it."""
  units = 7  # Like no other size.
  narrow = SmallTwins(
    np.ones((cases.L, 16), 'f4'),
    np.ones((cases.L, 16, 2, units), 'f4'),
    np.ones((cases.L, units, 16), 'f4'),
  )

  def products(choices):
    plan = decoding.ChosenFeedForward(choices, narrow)
    text = token_loop.lower_advance(started(plan, UNROLLED)).as_text()
    lines = [line for line in text.splitlines() if 'dot_general' in line]
    inner = cases.CONFIG.mlp_dim
    return [
      sum(f'x{width}x' in line for line in lines) for width in (inner, units)
    ]

  own, twin = products((1, 1, 1, 1))
  assert own >= 2 * cases.L and twin == 0
  assert products((0, 0, 0, 0)) == [0, 0]
  assert products((1, 2, 0, 2))[0] == own // cases.L
  assert products((1, 2, 0, 2))[1] * 2 == products((2, 2, 2, 2))[1] > 0


@register_pytree
@dataclasses.dataclass(frozen=True)
class ByRow(PlansAhead, StatelessSlot):
  """None, own and twin in turn, by row, layer and position."""

  twins: SmallTwins = TWINS

  def before(self, state, view):
    row = jnp.arange(len(view.positions))
    return state, LayerWork(
      feed_forward=by_row(row, view.layer, view.positions)
    )


def by_row(row, layer, position):
  return (row + 2 * layer + position) % 3


@pytest.mark.parametrize(
  'loop',
  [
    cases.WHILE,
    pytest.param(UNROLLED, marks=pytest.mark.slow),
    pytest.param(decoding.CompactingDepthLoop(), marks=pytest.mark.slow),
  ],
  ids=['while', 'flat', 'compacting'],
)
def test_rows_choose_for_themselves(loop):
  """Against the model's own pass, with exits, and in the ledger."""
  rule = exits.FixedExit(np.array([1, 2, 3, 4]))
  result = decode(ByRow(), loop, exit_rule=rule)
  row, position, layer = np.indices((cases.B, cases.T, cases.L))
  choices = by_row(row, layer, position)
  ran = layer < result.exit_layers[..., None]
  tokens = np.pad(result.tokens, ((0, 0), (1, 0)))[:, :-1]
  _, logits = cases._fill_in_parallel(
    cases.inputs(),
    tokens,
    ran,
    choices == 1,
    None,
    (TWINS, choices == 2),
    first_exit=False,
  )
  decoded = result.exit_layers > 0
  np.testing.assert_array_equal(
    np.asarray(logits).argmax(axis=-1)[decoded], result.tokens[decoded]
  )
  for column, variant, size in (
    ('feed_forward', 1, 1),
    ('extra_products', 2, 3 * TWINS.hidden_units),
  ):
    np.testing.assert_array_equal(
      getattr(result.work, column),
      size * (ran & (choices == variant)).sum(axis=-1),
    )


@functools.cache
def cost(choices):
  # Three rows more share the reads of weights, and FLOPs are those of each.
  plan = decoding.ChosenFeedForward(choices, TWINS)
  work = decode(plan).work
  counted = costs.decode_cost(cases.CONFIG, work, source_length=cases.S)
  return counted, (work.checks > 0).sum()


@pytest.mark.slow
@pytest.mark.parametrize('choices', [(2, 1, 0, 2), (0, 0, 0, 0)])
def test_the_cost_is_the_sum_of_what_was_chosen(choices):
  counted, tokens = cost(choices)
  config = cases.CONFIG
  gates = 1 + len(config.mlp_activations)
  own = gates * config.mlp_dim * choices.count(1)
  small = 3 * TWINS.hidden_units * choices.count(2)
  # All but feed-forwards is what a decode without any has.
  bare, bare_tokens = cost((0, 0, 0, 0))
  inner = counted.flops['layers'] / tokens
  inner -= bare.flops['layers'] / bare_tokens
  assert inner == 2 * config.embed_dim * own
  assert counted.flops['extra'] / tokens == 2 * config.embed_dim * small
  steps = counted.num_steps
  assert counted.bytes['extra'] == 4 * config.embed_dim * small * steps


def test_it_is_written_down_and_made_again():
  policy = decoding.ComputePolicy(layer_plan=cases.TWINS)
  described = decoding.describe(policy)['layer_plan']
  assert described['choices'] == [2, 1, 0, 2]
  assert decoding.ChosenFeedForward([2, 1, 0, 2], TWINS) == cases.TWINS
  other = decoding.with_setting(policy, {'layer_plan.choices': (1, 1, 1, 2)})
  assert other.layer_plan.choices == (1, 1, 1, 2)
  assert not decoding.is_full_at_one(policy)
  assert decoding.full_model(policy).layer_plan == decoding.EveryLayer()


@register_pytree
@dataclasses.dataclass(frozen=True)
class TwinOfNobody(PlansAhead, StatelessSlot):
  """Asks for a twin and brings none."""

  def before(self, state, view):
    return state, LayerWork(feed_forward=2)


def cut(layers=cases.L, size=16, units=3):
  return SmallTwins(
    np.ones((layers, size), 'f4'),
    np.ones((layers, size, 2, units), 'f4'),
    np.ones((layers, units, size), 'f4'),
  )


def chosen(choices, twins=TWINS, **slots):
  started(decoding.ChosenFeedForward(choices, twins), **slots)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: chosen((1, 2, 1)), r'\(1, 2, 1\); give one for each of the 4'),
    (lambda: chosen(2), 'is 2; give one for each'),
    (lambda: chosen((1, 1, 3, 1)), 'layer 2 .* 3 must be a whole number in'),
    (lambda: chosen((1, -1, 1, 1)), 'layer 1 .* -1 must be'),
    (lambda: chosen((1, 1, 1, 2.0)), 'layer 3 .* 2.0 must be'),
    (lambda: chosen((1, 1, 1, True)), 'layer 3 .* True must be'),
    (lambda: chosen((1, 2, 1, 1), None), 'twin of layer 1, and there are no'),
    (lambda: chosen((1, 2, 1, 1), 'x'), "is 'x'; give SmallTwins"),
    (lambda: chosen((1, 1, 1, 1), cut(layers=3)), r'scale \[3, 16\], gates'),
    (lambda: chosen((1, 1, 1, 1), cut(size=8)), 'decoder of 4 layers they are'),
    (lambda: chosen((1, 1, 1, 1), cut(units=0)), 'U at least 1'),
    (
      lambda: chosen(
        (1, 1, 1, 1), dataclasses.replace(cut(), out=np.float32(1))
      ),
      r'out \[\]',
    ),
    (
      lambda: chosen(
        (1, 1, 1, 1),
        dataclasses.replace(cut(), scale=np.full((4, 16), np.nan, 'f4')),
      ),
      'scale of the small twins nan',
    ),
    (
      lambda: chosen((1, 2, 1, 1), cache_fill=decoding.CatchUp()),
      'the layer plan ChosenFeedForward leaves some out',
    ),
    (lambda: decode(TwinOfNobody(), UNROLLED), 'asks for feed-forward 2, and'),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_class_is_no_object():
  with pytest.raises(TypeError, match='the class SmallTwins'):
    chosen((1, 2, 1, 1), SmallTwins)

"""Layer budgets: the cap is hard, whatever rule, model, input or loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from cases.budget_cases import MARGIN, RULES, SIZE, B, L, T, decode, used

from calm_jax import decoding, evaluation, exits
from calm_jax.interfaces import LayerView
from calm_jax.pytrees import register_pytree


@pytest.mark.slow
@pytest.mark.parametrize(
  'loop',
  [
    loop if loop == 'while' else pytest.param(loop, marks=pytest.mark.slow)
    for loop in decoding.DEPTH_LOOPS
  ],
)
@pytest.mark.parametrize('kind', RULES)
def test_no_output_ever_exceeds_its_budget(kind, loop):
  """Random models, inputs, thresholds and budgets per row."""
  rng = np.random.default_rng(17)
  first = 2 if kind == 'margin, every other layer' else 1
  reached = 0
  for _ in range(12):
    params = jax.tree.map(
      lambda leaf: leaf * rng.normal(1, 0.5, leaf.shape).astype(np.float32),
      cases.params(),
    )
    per_request = rng.integers(first * T, L * T, B)
    per_token = rng.integers(first, L + 1, B)
    result = decode(
      exits.LayerBudget(
        RULES[kind](rng.uniform(0.1, 1.0)), per_request, per_token
      ),
      source=rng.integers(2, cases.V, (B, cases.S)),
      params=params,
      loop=loop,
    )
    assert (used(result) <= per_request).all()
    assert (result.exit_layers <= per_token[:, None]).all()
    reached += (used(result) == per_request).sum()
  assert reached, 'no budget was ever used up'


@pytest.mark.slow
@pytest.mark.parametrize('horizon', [None, 11])
def test_what_is_left_goes_to_tokens_as_they_come(horizon):
  """Each gets what it wants, what there is, and one layer at the least."""
  rng = np.random.default_rng(2)
  for _ in range(5):
    wanted = rng.integers(1, L + 1, (B, T))
    per_request = rng.integers(horizon or T, 26, B)
    per_token = rng.integers(1, L + 1, B)
    rule = exits.LayerBudget(
      exits.ScheduledExit(wanted), per_request, per_token, horizon
    )
    expected = np.zeros((B, T), int)
    for row in range(B):
      spare = per_request[row] - (horizon or T)
      for position, layers in enumerate(wanted[row]):
        layers = min(layers, per_token[row], 1 + spare)
        expected[row, position], spare = layers, spare - (layers - 1)
    np.testing.assert_array_equal(decode(rule).exit_layers, expected)


@pytest.mark.slow
def test_enough_changes_nothing():
  for kind in ('margin', 'margin, every other layer', 'similarity'):
    rule = RULES[kind](0.6)
    enough = exits.LayerBudget(rule, per_request=L * T, per_token=L)
    for one, other in zip(
      jax.tree.leaves(decode(rule)),
      jax.tree.leaves(decode(enough)),
      strict=True,
    ):
      np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_up_to_the_cap_it_is_the_rule_and_confidences_are_its():
  plain = decode(MARGIN)
  capped = decode(exits.LayerBudget(MARGIN, per_token=2))
  # Rows agree until a token wanted more.
  for row in range(B):
    first = int(np.argmax(plain.exit_layers[row] > 2))
    assert plain.exit_layers[row, first] > 2
    for name in ('tokens', 'exit_layers', 'confidences'):
      np.testing.assert_array_equal(
        getattr(plain, name)[row, :first], getattr(capped, name)[row, :first]
      )
    assert capped.exit_layers[row, first] == 2
    assert capped.confidences[row, first] < 0.5
    # That is no confidence it went on at.
    assert capped.rejected_confidences[row, first] < 0.5


@register_pytree
@dataclasses.dataclass(frozen=True)
class Counting(exits.FixedExit):
  """Fires at layer 4, looks after 2 and 4 and counts how often it is asked."""

  exit_layer: int = 4

  def check(self, *size):
    return Counting(jnp.int32(4))

  def init(self, decoder, batch_size, max_length):
    return jnp.zeros((batch_size,), jnp.int32)

  def looks(self, layer):
    return layer % 2 == 1

  def step(self, state, view):
    _, stops, _ = super().step(jnp.full_like(state, 4), view)
    return state + 1, stops, jnp.full(state.shape, 0.25)


@pytest.mark.slow
def test_a_rule_is_asked_only_where_it_looks():
  rule = exits.LayerBudget(Counting(), per_token=np.array([1, 2, 3, 4]))
  for loop in ('while', 'unrolled'):
    depth_loop = decoding.DEPTH_LOOPS[loop]
    state = decoding.start(
      cases.bound(depth_loop),
      cases.inputs(),
      policy=decoding.ComputePolicy(exit_rule=rule),
      max_length=T,
      eos_id=-1,
    )
    state = decoding.advance(state)
    result = cases.host(decoding.finish(state))
    np.testing.assert_array_equal(
      result.exit_layers, np.repeat([[1], [2], [3], [4]], T, axis=1)
    )
    asked = np.asarray(state.carry.policy.exit_rule.rule)
    np.testing.assert_array_equal(asked, [0, T, T, 2 * T])
    # It had nothing to say where the budget stopped rows 0 and 2.
    seen = np.isnan(result.confidences).all(axis=1)
    np.testing.assert_array_equal(seen, [True, False, True, False])


def test_a_budget_adds_no_check_of_logits():
  rule = RULES['margin, every other layer'](0.9)
  budget = exits.LayerBudget(rule, per_token=3)
  assert [budget.looks(layer) for layer in range(L)] == [
    rule.looks(layer) for layer in range(L)
  ]
  # So 3 means 2, the last look before it.
  assert (decode(budget).exit_layers == 2).all()
  free = exits.LayerBudget(RULES['similarity'](1.0), per_token=3)
  assert all(free.looks(layer) is True for layer in range(L))
  assert (decode(free).exit_layers == 3).all()


@pytest.mark.parametrize(
  ('budget', 'message'),
  [
    (exits.LayerBudget(MARGIN), 'neither per_request nor per_token'),
    (exits.LayerBudget(exits.SoftmaxMargin(), 9), 'not an exit rule'),
    (exits.LayerBudget(exits.NeverExit, 9), 'not an exit rule'),
    (exits.LayerBudget(MARGIN, 7), r'per_request 7 .*8 tokens takes at least'),
    (exits.LayerBudget(MARGIN, 9, max_length=10), 'per_request 9 .*10 tokens'),
    (exits.LayerBudget(MARGIN, 9, max_length=7), 'max_length .*7 is outside'),
    (exits.LayerBudget(MARGIN, [9, 9]), r'per_request has shape \[2\]'),
    (exits.LayerBudget(MARGIN, 9.5), 'per_request 9.5 is not a whole'),
    (exits.LayerBudget(MARGIN, per_token=0), 'per_token 0 is outside'),
    (exits.LayerBudget(MARGIN, per_token=5), 'per_token 5 is outside'),
    (exits.LayerBudget(MARGIN, per_token='3'), "'3' is not a number"),
    (exits.LayerBudget(MARGIN, per_token=True), 'True is not a number'),
    (
      exits.LayerBudget(RULES['margin, every other layer'](0.5), per_token=1),
      r'per_token 1 .*stop after \[2, 4\] layers',
    ),
    (
      exits.LayerBudget(RULES['margin, every other layer'](0.5), 2 * T - 1),
      r'per_request 15 .*takes at least 2',
    ),
    (
      exits.LayerBudget(exits.ConfidenceExit(MARGIN.measure, 2.0), 9),
      'threshold 2.0',
    ),
  ],
)
def test_bad_budgets_are_refused(budget, message):
  with pytest.raises(ValueError, match=message):
    budget.check(*SIZE)


@pytest.mark.slow
def test_traced_budgets_decode_as_concrete_ones():
  @jax.jit
  def layers(per_request, per_token):
    rule = exits.LayerBudget(MARGIN, per_request, per_token)
    return decoding.generate(
      cases.bound(),
      cases.inputs(),
      policy=decoding.ComputePolicy(exit_rule=rule),
      max_length=T,
      eos_id=-1,
    ).exit_layers

  np.testing.assert_array_equal(
    layers(15, 3), decode(exits.LayerBudget(MARGIN, 15, 3)).exit_layers
  )


def test_use_is_told_from_what_was_recorded():
  plain = decode(MARGIN)
  rule = exits.LayerBudget(MARGIN, per_request=18, per_token=3)
  result = decode(rule)
  use = evaluation.budget_use(
    rule, result.exit_layers, result.confidences, num_layers=L
  )
  changed = (result.exit_layers != plain.exit_layers).any(axis=1)
  assert 0 < changed.mean() == use.capped_requests
  assert use.largest_request == used(result).max() <= 18
  assert use.mean_request == used(result).mean()
  assert use.largest_token == 3
  assert f'at most {use.largest_request}' in use.describe()
  with pytest.raises(ValueError, match='not exit layers of this policy'):
    evaluation.budget_use(
      dataclasses.replace(rule, per_request=use.largest_request - 1),
      result.exit_layers,
      result.confidences,
      num_layers=L,
    )
  with pytest.raises(ValueError, match='FixedExit has no thresholds'):
    evaluation.budget_use(
      exits.LayerBudget(exits.FixedExit(2), 18),
      result.exit_layers,
      result.confidences,
      num_layers=L,
    )


def test_states_lead_with_rows():
  rule = exits.LayerBudget(MARGIN, 20, 3).check(*SIZE)
  state = rule.init(*SIZE)
  assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))
  view = LayerView(
    layer=0,
    positions=jnp.zeros(B, jnp.int32),
    hidden=jnp.zeros((B, 2)),
    previous_hidden=jnp.zeros((B, 2)),
    logits=jnp.zeros((B, 3)),
    token_ids=None,
    log_total=None,
    active=jnp.ones(B, bool),
  )
  stepped, stops, _ = rule.step(state, view)
  assert not stops.any()
  np.testing.assert_array_equal(stepped.spare, state.spare - 1)

"""Pruned context: which positions a cache holds, and everybody who starts.

That a pruned decode says what a model with masked positions says is law 3 of
`test_policy_laws`, at `pruned_context_margin`, and here for other samplers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy

from calm_jax import decoding, deployment, exits, sharding
from calm_jax.context_gates import ContextGates
from calm_jax.interfaces import PlanView

INF = float('inf')
PLAN = cases.CONTEXT_PRUNED
B, T, L, D = 5, 12, cases.L, cases.CONFIG.embed_dim
LAYER = 2


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


@functools.cache
def states():
  """Returns random states [T, B, D] that enter a layer."""
  return np.random.default_rng(7).normal(size=(T, B, D)).astype(np.float32)


@functools.cache
def gates_said():
  """Returns x, float64 [B, T, T], of a later token about an earlier one."""
  gates = PLAN.gates
  normed = states() / np.sqrt((states() ** 2).mean(-1, keepdims=True) + 1e-6)
  query, key = (normed @ side[LAYER] for side in (gates.queries, gates.keys))
  products = np.einsum('ibr,jbr->bij', query, key)
  return products / np.sqrt(gates.size) + gates.bias[LAYER]


def dense(beta_shift=0.0):
  """Returns which positions each one still reads, bool [B, T, T]."""
  kept = np.tile(np.eye(T, dtype=bool), (B, 1, 1))
  for i in range(1, T):
    is_open = gates_said()[:, i, :i] + beta_shift > 0
    kept[:, i, :i] = kept[:, i - 1, :i] & is_open
  return kept


@functools.cache
def _walk():
  """Returns the jitted walk through T positions of one layer."""

  def walk(plan, hidden, alive, start):
    def step(state, token):
      position, hidden = token
      view = PlanView(
        layer=jnp.int32(LAYER),
        positions=jnp.full((B,), position),
        hidden=hidden,
        # A layer left over: its gates say what they say all the same.
        active=jnp.zeros((B,), bool),
        alive=alive,
      )
      state, work = plan.before(state, view)
      return state, (work.context.positions, work.slots)

    return jax.lax.scan(step, start, (jnp.arange(T), hidden))

  return jax.jit(walk)


def walk(slots, beta_shift=0.0, alive=(True,) * B):
  """Returns the last state, and what was held and where, [T, B, C], [T, B]."""
  plan = dataclasses.replace(PLAN, slots=slots, beta_shift=beta_shift)
  plan = plan.check(cases.decoder(), B, T)
  start = plan.init(cases.decoder(), B, T)
  state, found = _walk()(plan, states(), np.array(alive), start)
  return cases.host(state), *cases.host(found)


def as_mask(held):
  """Returns which positions are held, bool [B, T, T]; each at most once."""
  count = (held[..., None] == np.arange(T)).sum(axis=2)
  assert count.max() == 1, 'a position lies in two places'
  return np.moveaxis(count, 0, 1) > 0


def test_places_hold_what_the_dense_mask_reads():
  """With room for all, and for the most that is live; sets only shrink."""
  expected = dense()
  most = expected.sum(axis=-1).max(axis=-1)
  assert 2 < most.max() < T
  for slots in (None, T, int(most.max())):
    state, held, slot = walk(slots)
    kept = as_mask(held)
    np.testing.assert_array_equal(kept, expected)
    gone = ~kept[:, :-1] & (np.arange(T) < np.arange(1, T)[:, None])
    assert not (kept[:, 1:] & gone).any(), 'what was dropped came back'
    np.testing.assert_array_equal(state.most[:, LAYER], most)
    assert not state.overflow.any() and not state.most[:, :LAYER].any()
    assert (slot < held.shape[-1]).all()
    keys = np.take_along_axis(state.keys[:, LAYER], slot[-1][:, None, None], 1)
    assert (keys != 0).all() and not state.keys[:, :LAYER].any()
  np.testing.assert_array_equal(
    as_mask(walk(None, -0.3)[1]), dense(beta_shift=-0.3)
  )


def test_nothing_is_dropped_at_infinity_and_all_at_the_other():
  state, held, slot = walk(None, INF)
  np.testing.assert_array_equal(as_mask(held), [np.tri(T, dtype=bool)] * B)
  # Every position in its own place: the unpruned cache.
  np.testing.assert_array_equal(slot, np.tile(np.arange(T)[:, None], B))
  state, held, _ = walk(3, -INF)
  np.testing.assert_array_equal(as_mask(held), [np.eye(T, dtype=bool)] * B)
  assert state.most.max() == 1 and not state.overflow.any()


@pytest.mark.parametrize('beta_shift', [0.0, INF])
def test_without_room_the_lowest_score_goes_and_is_counted(beta_shift):
  slots, said = 3, gates_said()
  state, held, _ = walk(slots, beta_shift)
  kept, evicted = as_mask(held), np.zeros(B, int)
  for row in range(B):
    past = []
    for i in range(T):
      past = [j for j in past if said[row, i, j] + beta_shift > 0]
      if len(past) == slots:
        past.remove(min(past, key=lambda j: said[row, i, j]))
        evicted[row] += 1
      past.append(i)
      assert kept[row, i].nonzero()[0].tolist() == sorted(past)
  np.testing.assert_array_equal(state.overflow[:, LAYER], evicted)
  assert evicted.min() > 0 and state.most[:, LAYER].max() == slots


def test_rows_that_have_ended_change_nothing():
  alive = np.arange(B) % 2 == 0
  state, held, _ = walk(4, alive=alive)
  whole, expected, _ = walk(4)
  np.testing.assert_array_equal(held[:, alive], expected[:, alive])
  fresh = PLAN.check(cases.decoder(), B, T).init(cases.decoder(), B, 4)
  for name in ('keys', 'positions', 'most', 'overflow'):
    np.testing.assert_array_equal(
      getattr(state, name)[alive], getattr(whole, name)[alive]
    )
    np.testing.assert_array_equal(
      getattr(state, name)[~alive], np.asarray(getattr(fresh, name))[~alive]
    )


def policy_of(plan=PLAN, **slots):
  return decoding.ComputePolicy(layer_plan=plan, **slots)


def start(policy, **options):
  options = dict(max_length=cases.T, eos_id=cases.EOS_ID) | options
  return decoding.start(cases.bound(), cases.inputs(), policy=policy, **options)


def scores_of(tokens, plan):
  """Returns summed log-probabilities [B] of outputs, by the dense reference."""
  shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  batch = dict(
    encoder_input_tokens=cases.inputs(), decoder_input_tokens=shifted
  )
  every = np.ones((*tokens.shape, L), bool)
  logits, _, keep = cases.context_reference()(
    cases.params(), batch, every, plan.beta_shift
  )
  log_probabilities = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1
  )[..., 0]
  ends = np.cumsum(tokens == cases.EOS_ID, axis=1)
  said = (ends == 0) | ((ends == 1) & (tokens == cases.EOS_ID))
  return (log_probabilities * said).sum(axis=1), np.asarray(keep)


def _attend_in_places(params, layer, hidden, positions, cache, context=None):
  """The toy's attention: it adds what the tokens before hold."""
  del params
  assert context is not None and positions.shape == hidden.shape[:2]
  held = context.positions
  before = (held >= 0) & (held < positions)
  past = jnp.where(before, cache['values'][:, layer], 0.0).sum(axis=1)
  return hidden + jnp.stack([past, cache['ease']], axis=-1)[:, None]


IN_PLACES = dataclasses.replace(
  toy.toy_decoder(), attend=_attend_in_places, accepts_context=True
)
_LAYERS = IN_PLACES.num_layers
TOY_GATES = ContextGates(
  *np.random.default_rng(3).normal(size=(2, _LAYERS, 2, 2)), np.zeros(_LAYERS)
)


def said_by_the_toy(ease, length):
  """Returns tokens [T] worked out one by one, and what was held at most."""
  step = np.asarray(toy.toy_params()['step'])
  past = [{} for _ in range(_LAYERS)]
  tokens, most = [0], np.zeros(_LAYERS, int)
  for position in range(length):
    state = np.array([tokens[-1], 0.0])
    for layer in range(_LAYERS):
      normed = state / np.sqrt(np.square(state).mean() + 1e-6)
      query, key = (
        normed @ side[layer] for side in (TOY_GATES.queries, TOY_GATES.keys)
      )
      past[layer] = {
        at: (other, value)
        for at, (other, value) in past[layer].items()
        if query @ other > 0
      }
      read = sum(value for _, value in past[layer].values())
      past[layer][position] = key, state[0]
      most[layer] = max(most[layer], len(past[layer]))
      state = state + [read, ease]
      state[0] = (state[0] + step[layer]) % toy.VOCAB_SIZE
    tokens.append(int(state[0]))
  return tokens[1:], most


def test_a_decode_reads_what_is_held():
  """Of a toy, worked out token by token, with as many places as it takes."""
  sources, length = np.array([[3], [5], [8]]), 9
  expected, most = zip(
    *(said_by_the_toy(int(ease), length) for (ease,) in sources), strict=True
  )
  assert 1 < np.max(most) < length
  plan = decoding.PrunedContext(TOY_GATES, slots=int(np.max(most)))
  state = decoding.start(
    decoding.bind(IN_PLACES, toy.toy_params()),
    sources,
    policy=policy_of(plan),
    max_length=length,
    eos_id=-1,
  )
  state = decoding.advance(state)
  np.testing.assert_array_equal(decoding.finish(state).tokens, expected)
  use = decoding.context_use(state)
  np.testing.assert_array_equal(use.most, most)
  assert not use.overflow.any()


def decode_with(plan, **options):
  """Returns the result of a decode and how full its places were."""
  state = decoding.advance(start(policy_of(plan), **options))
  return cases.host(decoding.finish(state)), decoding.context_use(state)


@pytest.mark.slow
def test_places_of_a_decode_are_reused():
  """Fewer places than tokens, and it says what the dense mask says."""
  for beta_shift in (0.0, -0.5, -1.0, -1.5, -2.0, -3.0):
    plan = dataclasses.replace(PLAN, slots=None, beta_shift=beta_shift)
    roomy, use = decode_with(plan)
    if (most := int(use.most.max())) < cases.T - 1:
      break
  assert 2 < most < cases.T - 1
  result, fewer = decode_with(dataclasses.replace(plan, slots=most))
  np.testing.assert_array_equal(fewer.most, use.most)
  assert not fewer.overflow.any() and not use.overflow.any()
  np.testing.assert_array_equal(result.tokens, roomy.tokens)
  expected, keep = scores_of(result.tokens, plan)
  np.testing.assert_allclose(result.scores, expected, atol=1e-4)
  live = np.tril(keep).sum(axis=-1)
  decoded = np.arange(cases.T) < result.lengths[:, None]
  np.testing.assert_array_equal(use.most, (live * decoded).max(axis=-1).T)
  whole, _ = scores_of(result.tokens, dataclasses.replace(plan, beta_shift=INF))
  assert np.abs(whole - expected).max() > 0.1
  _, short = decode_with(dataclasses.replace(plan, slots=most - 1))
  assert short.overflow.any() and short.most.max() == most - 1


@pytest.mark.slow
def test_beams_are_those_of_the_dense_mask():
  """Places are of hypotheses, and go with them."""
  beams = dict(sampler=decoding.BeamSearch(3))
  plan = dataclasses.replace(PLAN, slots=None)
  result, use = decode_with(plan, **beams)
  assert use.most.shape == (3 * cases.B, L)
  expected, _ = scores_of(result.tokens, plan)
  np.testing.assert_allclose(result.scores, expected, atol=1e-4)
  found, _ = decode_with(dataclasses.replace(plan, beta_shift=INF), **beams)
  state = start(decoding.ComputePolicy(), **beams)
  full = cases.host(decoding.finish(decoding.advance(state)))
  np.testing.assert_array_equal(found.tokens, full.tokens)
  np.testing.assert_array_equal(found.scores, full.scores)
  assert (result.tokens != full.tokens).any()


@pytest.mark.slow
def test_slots_that_are_refilled_begin_empty():
  result = decoding.finish(decoding.advance(start(policy_of())))
  requests = [[token for token in row if token] for row in cases.inputs()]
  queue = decoding.decode_queue(
    cases.bound(),
    requests * 2,
    num_slots=2,
    source_length=cases.S,
    policy=policy_of(),
    max_length=cases.T,
    eos_id=cases.EOS_ID,
    steps=3,
  )
  found = dict(queue)
  assert len(found) == 2 * cases.B
  for number, one in found.items():
    np.testing.assert_array_equal(one.tokens, result.tokens[number % cases.B])


@pytest.mark.slow
def test_exports_and_programs_compiled_ahead():
  policy = policy_of(exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5))
  expected = decoding.finish(decoding.advance(start(policy)))
  spec = deployment.ProgramSpec(
    source_length=cases.S,
    max_length=cases.T,
    policy=policy,
    eos_id=cases.EOS_ID,
    platforms=('cpu',),
  )
  exported, named = deployment.lower_decoder(cases.bound(), spec)
  outputs = exported.call(
    named,
    {
      'tokens': jnp.asarray(cases.inputs(), jnp.int32),
      'threshold': jnp.float32(0.5),
    },
  )
  np.testing.assert_array_equal(outputs['tokens'], expected.tokens)
  mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
  compiled = decoding.compile_decode(
    cases.bound(decoding.WhileDepthLoop(), mesh),
    batch_size=2,
    source_length=cases.S,
    policy=policy,
    max_length=cases.T,
  )
  assert compiled.state.carry.cache.max_length == PLAN.slots


def test_settings_and_descriptions():
  policy = policy_of(dataclasses.replace(PLAN, beta_shift=INF))
  described = decoding.describe(policy)['layer_plan']
  assert (described['type'], described['slots']) == ('PrunedContext', 6)
  assert described['beta_shift'] == 'inf'
  setting = {'layer_plan.slots': np.int64(3), 'layer_plan.beta_shift': -0.5}
  changed = decoding.with_setting(policy, setting).layer_plan
  assert (changed.slots, changed.beta_shift) == (3, -0.5)
  assert decoding.full_model(policy).layer_plan == decoding.EveryLayer()
  assert not decoding.is_full_at_one(policy)
  assert [changed.room(length) for length in (2, 3, 9)] == [2, 3, 3]


def changed(**arrays):
  return dataclasses.replace(PLAN.gates, **arrays)


@pytest.mark.parametrize(
  ('plan', 'words'),
  [
    ({'slots': 0}, 'slots of PrunedContext 0 must be a whole number at least'),
    ({'slots': True}, 'slots of PrunedContext True must be'),
    ({'slots': 2.5}, 'slots of PrunedContext 2.5 must be'),
    ({'beta_shift': np.nan}, 'beta_shift of PrunedContext nan is outside'),
    ({'beta_shift': None}, 'beta_shift of PrunedContext None is not a number'),
    ({'beta_shift': np.zeros(3)}, r'PrunedContext has shape \[3\]'),
    ({'gates': None}, 'gates of PrunedContext is None; give ContextGates'),
    (
      {'gates': changed(bias=np.zeros(3))},
      r'and bias \[3\]; for this decoder of 4 layers they are \[4, 16, R\]',
    ),
    ({'gates': changed(keys=np.zeros((4, 16, 2)))}, r'keys \[4, 16, 2\] and'),
    (
      {'gates': ContextGates(*(np.zeros((4, 16, 0)),) * 2, np.zeros(4))},
      'R at least 1',
    ),
    (
      {'gates': changed(bias=np.full(4, np.inf))},
      'bias of the context gates inf is outside',
    ),
  ],
)
def test_bad_plans_are_refused(plan, words):
  with pytest.raises(ValueError, match=words):
    start(policy_of(dataclasses.replace(PLAN, **plan)))


@pytest.mark.parametrize(
  'fill',
  [
    decoding.CatchUp(),
    decoding.DeferredExitState(),
    decoding.ProjectFirstExitState(),
  ],
)
def test_fills_that_do_not_go_with_it_say_why(fill):
  words = f'PrunedContext gives K/V their places .* {type(fill).__name__} makes'
  with pytest.raises(ValueError, match=words):
    start(policy_of(cache_fill=fill))


def test_what_does_not_go_together_is_refused():
  drafts = policy_of(
    cache_fill=decoding.CatchUp(), verification=decoding.VerifyEvery(2)
  )
  with pytest.raises(ValueError, match='the layer plan PrunedContext leaves'):
    start(drafts)
  with pytest.raises(TypeError, match='gates is the class ContextGates'):
    start(policy_of(decoding.PrunedContext(ContextGates)))
  with pytest.raises(ValueError, match='does not say accepts_context'):
    decoding.start(
      toy.toy_bound(), cases.inputs() % 3, policy=policy_of(), max_length=2
    )
  with pytest.raises(ValueError, match='layer plan EveryLayer prunes no'):
    decoding.context_use(start(decoding.ComputePolicy()))

"""Source plans: which source positions are read, and everybody who starts.

That a pruned decode says what a model with masked positions says is law 3 of
`test_policy_laws`, at `pruned_source_margin`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import sourced_decoder as sourced
from fakes import toy_decoder as toy

from calm_jax import decoding, deployment, exits, sharding
from calm_jax.decoding import starting
from calm_jax.source_scorer import SourceScorer

INF = float('inf')
# Tokens from 2 on have open gates; 0 is padding.
SOURCES = np.array([[1, 5, 2, 9, 1], [3, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.8)


def pruned(keep, beta_shift=0.0):
  return decoding.PrunedSource(sourced.SCORER, keep, beta_shift)


def selected(keep, beta_shift=0.0):
  """Returns what of SOURCES is kept, a list of (position, open) per row."""
  bound = sourced.sourced_bound()
  plan = pruned(keep, beta_shift).check(bound.decoder, 3, 4)
  places, is_open = plan.select(bound, bound.encode(jnp.asarray(SOURCES)))
  assert places.dtype == jnp.int32 and places.shape == is_open.shape
  _, mask = bound.source_states(bound.encode(jnp.asarray(SOURCES)))
  read = np.take_along_axis(np.asarray(mask & True), np.asarray(places), 1)
  return [
    [int(place) for place in row[kept]]
    for row, kept in zip(
      np.asarray(places), np.asarray(is_open) & read, strict=True
    )
  ]


@pytest.mark.parametrize(
  ('keep', 'beta_shift', 'expected'),
  [
    # The best ones, in their order, whose gates are open; the best always.
    (2, 0.0, [[1, 3], [0], [0]]),
    (1, 0.0, [[3], [0], [0]]),
    (4, 0.0, [[1, 2, 3], [0], [0]]),
    # Of equal ones the first; more room than tokens keeps no padding.
    (2, INF, [[1, 3], [0, 1], [0, 1]]),
    (4, INF, [[0, 1, 2, 3], [0, 1], [0, 1, 2]]),
    (9, INF, [[0, 1, 2, 3, 4], [0, 1], [0, 1, 2]]),
    (9, 0.2, [[0, 1, 2, 3, 4], [0, 1], [0, 1, 2]]),
    (9, -INF, [[3], [0], [0]]),
  ],
)
def test_which_positions_are_read(keep, beta_shift, expected):
  assert selected(keep, beta_shift) == expected


@pytest.mark.slow
def test_keys_and_values_are_made_of_what_is_kept_alone():
  """Of C positions, to the bit those that the whole source has there."""
  sizes = dict(max_length=cases.T, num_rows=1)
  bound = cases.bound()
  plan = cases.SOURCE_PRUNED.check(bound.decoder, cases.B, 4)
  whole, *_ = starting.encode(
    bound, cases.inputs(), decoding.WholeSource(), **sizes
  )
  some, *_ = starting.encode(bound, cases.inputs(), plan, **sizes)
  assert some.cross_key.shape[-2] == plan.keep == cases.S - 1
  kept = cases.kept_source(True)
  assert kept.sum(axis=1).min() >= 1 and kept.sum() < (cases.inputs() > 0).sum()
  for row in range(cases.B):
    read = np.asarray(some.cross_bias[row, 0, 0]) == 0.0
    for side in ('cross_key', 'cross_value'):
      np.testing.assert_allclose(
        np.asarray(getattr(some, side))[row][..., read, :],
        np.asarray(getattr(whole, side))[row][..., kept[row], :],
        atol=1e-5,
      )


def test_the_null_object_is_in_no_program():
  bound = sourced.sourced_bound()

  def encode(bound, inputs):
    return bound.start(bound.encode(inputs), 4, None), None

  text = starting.encode.lower(
    bound, SOURCES, decoding.WholeSource(), max_length=4, num_rows=1
  ).as_text()
  assert text == jax.jit(encode).lower(bound, SOURCES).as_text()
  plan = pruned(2).check(bound.decoder, 3, 4)
  other = starting.encode.lower(bound, SOURCES, plan, max_length=4, num_rows=1)
  assert 'top_k' in other.as_text() and 'top_k' not in text


def test_the_null_object_as_a_plan():
  bound = sourced.sourced_bound()
  places, valid = decoding.WholeSource().select(bound, bound.encode(SOURCES))
  np.testing.assert_array_equal(places, [np.arange(5)] * 3)
  assert valid.all()


def policy_of(plan, **slots):
  slots = {'exit_rule': MARGIN, **slots}
  return decoding.ComputePolicy(source_plan=plan, **slots)


def confidences(policy, source=SOURCES, **options):
  """Returns how sure a decode of the toy is of its first tokens."""
  options = dict(max_length=3, eos_id=-1) | options
  result = decoding.generate(
    sourced.sourced_bound(), source, policy=policy, **options
  )
  return np.asarray(result.confidences)[..., 0], result


def sure(ease, layers=1):
  """The toy's margin after some layers."""
  k = ease * layers
  return (k - 1 / 9) / (k + 1)


@pytest.mark.slow
def test_a_router_sees_the_whole_source():
  case, expected = cases.case('router'), cases.decode('router')

  def policy(rows, threshold):
    policy = case.policy(rows, threshold)
    return dataclasses.replace(policy, source_plan=cases.SOURCE_PRUNED)

  result = cases.run(dataclasses.replace(case, policy=policy))
  assert (result.tokens != expected.tokens).any()
  np.testing.assert_array_equal(
    result.exit_layers.max(axis=1), expected.exit_layers.max(axis=1)
  )


@pytest.mark.slow
def test_sources_exits_and_vocabulary_are_pruned_by_one_setting():
  """Three axes of one policy, set together; each alone changes what is said."""
  with jax.default_matmul_precision('highest'):
    case = cases.case('pruned_source_margin')
    base = dataclasses.replace(
      case.policy(np.arange(cases.B), 1.0), readout=cases.PRUNED
    )

    def decode(**setting):
      paths = {
        'source_plan.keep': cases.S,
        'source_plan.beta_shift': INF,
        'exit_rule.threshold': 1.0,
        'readout.num_blocks': -(-cases.V // cases.PRUNED.block_size),
      }
      paths |= {name.replace('__', '.'): n for name, n in setting.items()}
      policy = decoding.with_setting(base, paths)
      return cases.run(dataclasses.replace(case, policy=lambda *_: policy))

    full = cases.decode('full')
    np.testing.assert_array_equal(decode().tokens, full.tokens)
    both = decode(
      source_plan__keep=5,
      source_plan__beta_shift=0.0,
      exit_rule__threshold=case.threshold,
    )
    expected = cases.decode('pruned_source_margin')
    np.testing.assert_array_equal(both.tokens, expected.tokens)
    np.testing.assert_array_equal(both.exit_layers, expected.exit_layers)
    said = {
      decode(
        source_plan__keep=5,
        source_plan__beta_shift=0.0,
        exit_rule__threshold=case.threshold,
        readout__num_blocks=2,
      ).tokens.tobytes(),
      both.tokens.tobytes(),
      decode(source_plan__keep=3).tokens.tobytes(),
      full.tokens.tobytes(),
    }
    assert len(said) == 4


def test_a_decode_reads_what_is_kept():
  never = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(MARGIN.measure, 0)
  )
  found, _ = confidences(never)
  means = np.array([18 / 5, 2.0, 1.0])
  np.testing.assert_allclose(found, sure(means), rtol=1e-5)
  plan = dataclasses.replace(never, source_plan=pruned(2))
  found, _ = confidences(plan)
  np.testing.assert_allclose(found, sure(np.array([7.0, 3, 1])), rtol=1e-5)


@pytest.mark.slow
def test_rows_of_one_request_and_slots_read_what_is_kept():
  plan = policy_of(pruned(2))
  found, result = confidences(plan)
  # Beams and samples are rows of the same request.
  for options in (
    dict(
      num_samples=2, sampler=decoding.Temperature(0.1), rng=jax.random.key(0)
    ),
    dict(sampler=decoding.BeamSearch(2)),
  ):
    wider, _ = confidences(plan, **options)
    for column in wider.reshape(3, -1).T:
      np.testing.assert_allclose(column, found, rtol=1e-5)
  # One after the other, in slots that are refilled.
  requests = [[token for token in row if token] for row in SOURCES.tolist()]
  queue = decoding.decode_queue(
    sourced.sourced_bound(),
    requests * 2,
    num_slots=2,
    source_length=5,
    policy=plan,
    max_length=3,
    eos_id=-1,
  )
  for number, one in queue:
    np.testing.assert_array_equal(one.tokens, result.tokens[number % 3])
    np.testing.assert_allclose(one.confidences[0], found[number % 3], rtol=1e-5)


@pytest.mark.slow
def test_traces_are_of_what_is_kept():
  policy = policy_of(pruned(2), cache_fill=decoding.CatchUp())
  _, result = confidences(policy)
  state = decoding.start(
    sourced.sourced_bound(), SOURCES, policy=policy, max_length=3, eos_id=-1
  )
  found = decoding.trace(state, result.tokens, result.lengths)
  exits_at = np.asarray(result.exit_layers)[..., None] - 1
  np.testing.assert_allclose(
    np.take_along_axis(np.asarray(found.confidences), exits_at, 2)[..., 0],
    result.confidences,
    rtol=1e-5,
  )


@pytest.mark.slow
def test_exports_are_of_what_is_kept():
  policy = policy_of(pruned(2))
  _, result = confidences(policy)
  spec = deployment.ProgramSpec(
    source_length=5, max_length=3, policy=policy, eos_id=-1, platforms=('cpu',)
  )
  bound = sourced.sourced_bound(depth_loop=decoding.WhileDepthLoop())
  exported, named = deployment.lower_decoder(bound, spec)
  outputs = exported.call(
    named,
    {'tokens': jnp.asarray(SOURCES, jnp.int32), 'threshold': jnp.float32(0.8)},
  )
  np.testing.assert_array_equal(outputs['tokens'], result.tokens)


@pytest.mark.slow
def test_a_decode_is_compiled_ahead():
  mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
  found = decoding.compile_decode(
    cases.bound(decoding.WhileDepthLoop(), mesh),
    batch_size=2,
    source_length=cases.S,
    policy=decoding.ComputePolicy(source_plan=cases.SOURCE_PRUNED),
    max_length=4,
  )
  assert found.state.carry.cache.cross_key.shape[-2] == cases.SOURCE_PRUNED.keep


def test_settings_and_descriptions():
  policy = policy_of(pruned(2, INF))
  described = decoding.describe(policy)
  plan = described['source_plan']
  assert (plan['type'], plan['keep']) == ('PrunedSource', 2)
  # Infinity is no JSON.
  assert plan['beta_shift'] == 'inf'
  setting = {'source_plan.keep': np.int64(3), 'source_plan.beta_shift': -0.5}
  changed = decoding.with_setting(policy, setting).source_plan
  assert (changed.keep, changed.beta_shift) == (3, -0.5)
  left_out = decoding.describe(policy, setting)['source_plan']
  assert left_out['keep'] is left_out['beta_shift'] is None
  assert decoding.full_model(policy).source_plan == decoding.WholeSource()
  assert not decoding.is_full_at_one(policy)
  whole = dataclasses.replace(policy, source_plan=decoding.WholeSource())
  assert decoding.is_full_at_one(whole)
  assert 'source_plan' not in decoding.describe(whole)
  with pytest.raises(ValueError, match='WholeSource has no field'):
    decoding.with_setting(whole, {'source_plan.keep': 3})


def scorer(weights=(1.0, 0.0), bias=0.0):
  return SourceScorer(np.array(weights), bias)


@pytest.mark.parametrize(
  ('plan', 'words'),
  [
    (pruned(0), 'keep of PrunedSource 0 must be a whole number at least 1'),
    (pruned(True), 'keep of PrunedSource True must be'),
    (pruned(2.5), 'keep of PrunedSource 2.5 must be'),
    (pruned(2, np.nan), 'beta_shift of PrunedSource nan is outside'),
    (pruned(2, None), 'beta_shift of PrunedSource None is not a number'),
    (pruned(2, np.zeros(3)), r'beta_shift of PrunedSource has shape \[3\]'),
    (decoding.PrunedSource(None, 2), 'scorer is None; give a SourceScorer'),
    (
      decoding.PrunedSource(scorer((1.0, 2.0, 3.0)), 2),
      r'weights of the source scorer has shape \[3\], wanted \[2\]; give the',
    ),
    (decoding.PrunedSource(scorer((1.0, np.nan)), 2), 'scorer nan is outside'),
    (decoding.PrunedSource(scorer(bias=np.inf), 2), 'scorer inf is outside'),
    (decoding.PrunedVocabulary(4), 'source_plan holds a PrunedVocabulary'),
    (None, 'source_plan holds a NoneType.*decoding.WholeSource'),
  ],
)
def test_bad_plans_are_refused(plan, words):
  with pytest.raises(ValueError, match=words):
    confidences(policy_of(plan))


def test_what_does_not_go_together_is_refused():
  with pytest.raises(TypeError, match='source_plan is the class WholeSource'):
    confidences(policy_of(decoding.WholeSource))
  drafts = policy_of(
    pruned(2),
    cache_fill=decoding.CatchUp(),
    verification=decoding.VerifyEvery(2),
  )
  with pytest.raises(ValueError, match='source plan PrunedSource leaves parts'):
    confidences(drafts)
  for lacking in ('source_states', 'select_source'):
    decoder = dataclasses.replace(sourced.DECODER, **{lacking: None})
    bound = decoding.bind(decoder, toy.toy_params())
    with pytest.raises(ValueError, match=f'this decoder has no {lacking}'):
      decoding.start(bound, SOURCES, policy=policy_of(pruned(2)), max_length=2)
  bound = toy.toy_bound()
  with pytest.raises(ValueError, match='has no source_states, so no plan'):
    bound.source_states({})
  with pytest.raises(ValueError, match='has no select_source, so all of'):
    bound.select_source({}, jnp.zeros((1, 1), int), jnp.ones((1, 1), bool))

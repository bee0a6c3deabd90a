"""What follows from the full model's outputs is what decoding says."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder

from calm_jax import decoding, evaluation, exits
from calm_jax.evaluation import dataset_decoder as dataset_decoder_module
from calm_jax.evaluation import following
from calm_jax.processes import collectives

N = 22
CLASSIFIER = exits.Classifier(
  np.random.default_rng(3).normal(size=cases.CONFIG.embed_dim) / 12.0, 0.1
)
# One per exit, and its logits too.
GATES = exits.Gate(
  layer_bias=np.zeros((cases.L - 1, 1)),
  bias=np.full((cases.L - 1,), -1.0),
  previous=np.random.default_rng(4).normal(size=(1, cases.CONFIG.embed_dim, 1))
  / 8.0,
  logits=np.full((cases.L - 1, 3, 1), 2.0),
)
RULES = {
  'margin': lambda value: exits.ConfidenceExit(exits.SoftmaxMargin(), value),
  'maximum_decaying_every_second': lambda value: exits.ConfidenceExit(
    exits.SoftmaxMaximum(),
    exits.DecayingThreshold(value, temperature=4.0),
    minimum_exit_layer=2,
    interval=2,
  ),
  'state': lambda value: exits.ConfidenceExit(
    exits.StateSimilarity(), exits.ConstantThreshold(value)
  ),
  'classifier_release_decay': lambda value: exits.ConfidenceExit(
    CLASSIFIER,
    exits.ReleaseDecayThreshold(value, temperature=4.0, max_length=9),
    minimum_exit_layer=2,
  ),
  'gates': lambda value: exits.ConfidenceExit(GATES, value),
}
THRESHOLDS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)


def batches(seed=5, vocab_size=cases.V):
  rng = np.random.default_rng(seed)
  inputs = rng.integers(2, vocab_size, (24, cases.S))
  return [
    {
      'encoder_input_tokens': inputs[start : start + 8],
      'num_valid': min(8, N - start),
    }
    for start in range(0, 24, 8)
  ]


def policy_of(rule, **slots):
  return decoding.ComputePolicy(
    exit_rule=rule, **{'cache_fill': decoding.CatchUp((1, 2)), **slots}
  )


def dataset_decoder(bound=None, **options):
  return evaluation.DatasetDecoder(
    bound=cases.bound(decoding.UnrolledDepthLoop()) if bound is None else bound,
    **{
      'detokenize': str,
      'max_length': cases.T,
      'eos_id': cases.EOS_ID,
      **options,
    },
  )


def decode_both(decode, data, make_rule, thresholds, *, walk=False, **slots):
  """Yields (with traces, everything decoded) at every threshold.

  With what the threshold before tells as well, if it is a `walk`.
  """
  policies = [policy_of(make_rule(value), **slots) for value in thresholds]
  _, traces = decode.full_and_traces(data, policies[0], policies)
  earlier = None
  for policy in policies:
    found = decode(data, policy=policy, traces=traces, earlier=earlier)
    if walk:
      earlier = found
    yield found, decode(data, policy=policy)


def assert_same(found, expected):
  for name in ('tokens', 'exit_layers', 'lengths', 'work'):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), err_msg=name
    )
  for name in ('confidences', 'rejected_confidences', 'scores'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(expected, name), atol=1e-4, err_msg=name
    )
  assert found.texts == expected.texts
  assert found.example_ids == expected.example_ids


def told_counts(lines):
  """Returns what the progress said: [K, (of, derived, continued, left)]."""
  told = [line for line in lines if line.startswith('of ')]
  return np.array([re.findall(r'[0-9]+', line) for line in told], int)


@pytest.mark.slow
@pytest.mark.parametrize('rule', RULES)
@jax.default_matmul_precision('highest')
def test_it_equals_decoding_everything(rule):
  lines = []
  decode = dataset_decoder(cases.bound(), progress=lines.append)
  for found, expected in decode_both(
    decode, batches(), RULES[rule], THRESHOLDS
  ):
    assert_same(found, expected)
  of, derived, continued, left = told_counts(lines).T
  np.testing.assert_array_equal(of, N)
  np.testing.assert_array_equal(derived + continued + left, N)
  assert derived[0] == N
  assert continued.sum() > N and left.sum() < N // 4


@pytest.mark.slow
@jax.default_matmul_precision('highest')
def test_adapted_exits_follow_from_the_full_model_too():
  """It is read as it is, and its states as they are adapted."""
  lines = []
  decode = dataset_decoder(cases.bound(), progress=lines.append)
  for found, expected in decode_both(
    decode, batches(), RULES['margin'], (0.75, 0.25), readout=cases.ADAPTED
  ):
    assert_same(found, expected)
    assert found.total_work()['extra_products'] > 0
  assert told_counts(lines)[:, 1].sum() > 0
  pruned = dataclasses.replace(cases.ADAPTED, inner=cases.PRUNED)
  for readout, follows in ((cases.ADAPTED, True), (pruned, False)):
    policy = policy_of(RULES['margin'](0.5), readout=readout)
    assert evaluation.follows_from_full(cases.bound(), policy) == follows


@pytest.mark.slow
@pytest.mark.parametrize(
  'rule',
  [
    'maximum_decaying_every_second',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in RULES
      if name != 'maximum_decaying_every_second'
    ),
  ],
)
@jax.default_matmul_precision('highest')
def test_a_walk_down_a_grid_decodes_nothing_twice(rule, monkeypatch):
  """No token of an input behind the same tokens; as the whole says."""
  lines, inputs, seen = [], [], []
  start, extend = decoding.start, decoding.extend

  def noted_start(bound, inputs_now, **options):
    inputs[:] = map(tuple, np.asarray(inputs_now).tolist())
    return start(bound, inputs_now, **options)

  def noted_extend(state, tokens, lengths, thresholds):
    seen.extend(
      {
        (row, tuple(said[:length].tolist()))
        for row, said, length in zip(inputs, tokens, lengths, strict=True)
        if length < len(said)
      }
    )
    return extend(state, tokens, lengths, thresholds)

  monkeypatch.setattr(decoding, 'start', noted_start)
  monkeypatch.setattr(decoding, 'extend', noted_extend)
  decode = dataset_decoder(cases.bound(), progress=lines.append)
  thresholds = np.linspace(0.9, 0.0, 10)
  for found, expected in decode_both(
    decode, batches(), RULES[rule], thresholds, walk=True
  ):
    assert_same(found, expected)
  of, derived, continued, left = told_counts(lines).T
  np.testing.assert_array_equal(derived + continued + left, of)
  assert of.min() < N and left.sum() < N // 4 < continued.sum()
  # Some from where another output than the full model's is left.
  assert len(seen) == len(set(seen)) > len({row for row, _ in seen})


@jax.default_matmul_precision('highest')
def test_the_full_model_is_decoded_with_its_exits(monkeypatch):
  """As it is without them, and no output is looked at a second time."""
  decode, policy = (
    dataset_decoder(cases.bound()),
    policy_of(RULES['margin'](0.5)),
  )
  plain = decode(batches(), policy=decoding.full_model(policy))
  monkeypatch.setattr(decoding, 'trace', None)
  found, traces = decode.full_and_traces(batches(), policy)
  assert_same(found, plain)
  store = evaluation.DecodeStore(None, {})
  traces.fill(store, policy)
  assert len(store) > N // 2


@jax.default_matmul_precision('highest')
@pytest.mark.slow
def test_another_model_follows_too():
  """The toy decoder, whose numbers are exact: nothing is left to decode."""
  lines = []
  decode = dataset_decoder(
    toy_decoder.toy_bound(4), eos_id=8, progress=lines.append
  )
  rng = np.random.default_rng(2)
  data = [{'encoder_input_tokens': rng.integers(1, 4, (6, 2))}]
  pairs = decode_both(decode, data, RULES['margin'], (0.9, 0.7, 0.6, 0.3))
  exits_found = set()
  for found, expected in pairs:
    assert_same(found, expected)
    exits_found |= set(expected.exit_layers.ravel().tolist())
  assert {1, 2, 3, 4} <= exits_found
  _, _, continued, left = told_counts(lines).T
  assert continued.any() and not left.any()


def trace_of(confidences, tokens, leads=1.0):
  """Returns a trace of one output with L = 3."""
  confidences = np.array([confidences], np.float32)
  return decoding.Trace(
    confidences=confidences,
    tokens=np.array([tokens], np.int32),
    leads=np.broadcast_to(np.float32(leads), confidences.shape).copy(),
    log_probabilities=np.full(confidences.shape, -0.5, np.float32),
  )


def follow(trace, outputs, threshold=0.5, eos_id=1):
  lengths = np.array([np.count_nonzero(outputs)])
  return following.follow(
    trace,
    np.array([outputs], np.int32),
    lengths,
    np.full(len(outputs), threshold, np.float32),
    eos_id=eos_id,
  )


CONFIDENCES = ((0.2, 0.6, 0.9), (0.1, 0.3, 0.2), (0.7, 0.8, 0.9), (9, 9, 9))


def test_a_row_follows_to_its_first_other_token():
  same = ((5, 6, 7), (8, 8, 9), (1, 3, 1), (2, 2, 2))
  found = follow(trace_of(CONFIDENCES, same), [6, 9, 1, 0])
  assert found.ended.all() and not found.unsure.any()
  rows = found.rows()
  assert rows['tokens'].tolist() == [[6, 9, 1, 0]]
  assert rows['exit_layers'].tolist() == [[2, 3, 1, -1]]
  np.testing.assert_allclose(rows['confidences'][0, :3], [0.6, 0.2, 0.7])
  np.testing.assert_allclose(
    rows['rejected_confidences'][0], [0.2, 0.3, -np.inf, -np.inf]
  )
  assert rows['scores'].tolist() == [-1.5]
  other = ((5, 6, 7), (8, 8, 9), (4, 3, 1), (2, 2, 2))
  found = follow(trace_of(CONFIDENCES, other), [6, 9, 1, 0])
  assert not found.ended.any() and not found.unsure.any()
  assert found.tokens.tolist() == [[6, 9, 4, 0]]
  # Another token that ends the row is its last.
  found = follow(trace_of(CONFIDENCES, other), [6, 9, 1, 0], eos_id=4)
  assert found.ended.all() and found.lengths == [3]


def test_what_is_too_close_is_not_concluded():
  same = ((5, 6, 7), (8, 8, 9), (1, 3, 1), (2, 2, 2))
  output = [6, 9, 1, 0]
  for confidence, unsure in (
    (0.5 + 5e-6, True),
    (0.5 - 5e-6, True),
    (0.5 + 2e-5, False),
    (0.5 - 2e-5, False),
  ):
    changed = ((0.2, 0.6, 0.9), (confidence, 0.3, 0.2), *CONFIDENCES[2:])
    found = follow(trace_of(changed, same), output)
    assert found.unsure.tolist() == [unsure]
    # At layer 1 it says another token, 8.
    assert found.ended.tolist() == [confidence < 0.5 and not unsure]
  # Behind the output, and at the last layer, nothing is compared.
  last = ((0.2, 0.6, 0.5), (0.1, 0.3, 0.5), CONFIDENCES[2], (0.5, 0.5, 0.5))
  assert follow(trace_of(last, same), output).ended.all()
  tied = trace_of(CONFIDENCES, same)
  tied.leads[0, 1, 2] = 5e-5
  assert follow(tied, output).unsure.all()
  # Where it does not exit, a tie does not matter.
  tied = trace_of(CONFIDENCES, same)
  tied.leads[0, 1, 1] = 0.0
  assert follow(tied, output).ended.all()


@pytest.mark.slow
def test_rows_at_a_threshold_are_decoded():
  """A threshold that IS a confidence: nothing of that row is derived."""
  decode = dataset_decoder()
  full_policy = policy_of(RULES['margin'](1.0))
  full = decode(batches(), policy=decoding.full_model(full_policy))
  traces = decode.trace(batches(), full, full_policy)
  seen = decode(batches(), policy=policy_of(RULES['margin'](0.5)))
  row, position = np.argwhere(
    (seen.exit_layers == 1) & (np.arange(cases.T) == 0)
  )[0]
  threshold = float(seen.confidences[row, position])
  policy = policy_of(RULES['margin'](threshold))
  store = evaluation.DecodeStore(None, {})
  traces.fill(store, policy)
  key = evaluation.row_key(seen.example_ids[row], seen.batch_shapes[row])
  assert key not in store and len(store) > N // 2
  expected = decode(batches(), policy=policy)
  assert_same(decode(batches(), policy=policy, traces=traces), expected)


@pytest.mark.slow
def test_what_does_not_follow_is_decoded():
  decode = dataset_decoder()
  margin = RULES['margin'](0.5)
  exact = policy_of(margin)
  assert evaluation.follows_from_full(decode.bound, exact)
  for other in (
    decoding.ComputePolicy(exit_rule=margin),
    dataclasses.replace(exact, readout=cases.PRUNED),
    dataclasses.replace(exact, readout=cases.STREAMED),
    dataclasses.replace(exact, verification=decoding.VerifyEvery(3)),
    policy_of(exits.LayerBudget(margin, per_request=16)),
    policy_of(exits.FixedExit(2)),
    policy_of(exits.ConfidenceExit(exits.SoftmaxMargin(), np.full(8, 0.5))),
    decoding.full_model(exact),
  ):
    assert not evaluation.follows_from_full(decode.bound, other), other
    assert decode.trace(batches(), None, other) is None
  half = dataclasses.replace(decode.bound.decoder, dtype=jnp.dtype('bfloat16'))
  bound = dataclasses.replace(decode.bound, decoder=half)
  assert not evaluation.follows_from_full(bound, exact)
  with jax.default_matmul_precision('bfloat16'):
    assert not evaluation.follows_from_full(decode.bound, exact)
  # Traces of one policy say nothing of others, beside its threshold.
  full = decode(batches(), policy=decoding.full_model(exact))
  traces = decode.trace(batches(), full, exact)
  for other in (
    policy_of(RULES['state'](0.5)),
    dataclasses.replace(exact, cache_fill=decoding.ProjectExitState()),
  ):
    store = evaluation.DecodeStore(None, {})
    traces.fill(store, other)
    assert len(store) == 0


@pytest.mark.slow
def test_each_process_has_its_own_rows():
  decode = dataset_decoder()
  policy = policy_of(RULES['margin'](0.5))
  full = decode(batches(), policy=decoding.full_model(policy))
  held = []
  for index in range(2):
    one = dataset_decoder(share=collectives.Share(index, 2))
    store = evaluation.DecodeStore(None, {})
    one.trace(batches(), full, policy).fill(store, policy)
    keys = [
      evaluation.row_key(*row)
      for row in zip(full.example_ids, full.batch_shapes, strict=True)
    ]
    held.append([place for place, key in enumerate(keys) if key in store])
    assert all(place % 2 == index for place in held[-1])
  assert len(held[0]) > N // 4 < len(held[1])


def test_other_decodes_are_refused():
  bound, inputs = cases.bound(), cases.inputs()
  nothing = np.zeros((cases.B, cases.T), np.int32)
  thresholds = np.full(cases.T, 0.5, np.float32)
  options = dict(max_length=cases.T, eos_id=cases.EOS_ID)
  state = decoding.start(bound, inputs, **options)
  with pytest.raises(ValueError, match='ProjectExitState'):
    decoding.trace(state, nothing, nothing[:, 0])
  exact = policy_of(RULES['margin'](0.5))
  for extra in (
    dict(num_samples=2),
    dict(sampler=decoding.BeamSearch(2)),
    dict(sampler=decoding.Temperature(1.0), rng=cases.KEY),
    dict(forced_prefix=cases.PREFIXES),
  ):
    state = decoding.start(bound, inputs, policy=exact, **options, **extra)
    with pytest.raises(ValueError, match='does not follow'):
      decoding.extend(state, nothing, nothing[:, 0], thresholds)


@pytest.mark.slow
def test_a_calibration_uses_it_by_itself(monkeypatch):
  """The same losses and certificate, and no setting is decoded."""
  rows = np.arange(60)
  data = [
    {
      'encoder_input_tokens': np.stack(
        [1 + rows[part] % 9, 1 + rows[part] // 9], axis=1
      ).astype(np.int32),
      'targets_text': ['x'] * 20,
    }
    for part in (slice(0, 20), slice(20, 40), slice(40, 60))
  ]
  decode = dataset_decoder(
    toy_decoder.toy_bound(4),
    eos_id=-1,
    detokenize=lambda ids: ' '.join(map(str, ids)),
  )
  plan = evaluation.CalibrationPlan(
    settings=(0.9, 0.75, 0.7, 0.6, 0.5, 0.2), metric='token_f1', tolerance=0.6
  )
  sizes, generate = [], decoding.generate

  def counted(bound, inputs, **options):
    sizes.append(len(inputs))
    return generate(bound, inputs, **options)

  monkeypatch.setattr(decoding, 'generate', counted)

  def calibrate():
    sizes.clear()
    return evaluation.run_calibration(
      decode, data, policy_of(RULES['margin'](1.0)), plan, full_grid=True
    )

  spared = calibrate()
  assert not sizes, 'the full model is, with its exits'
  monkeypatch.setattr(dataset_decoder_module, 'follows_from_full', never)
  whole = calibrate()
  assert len(sizes) > 9
  np.testing.assert_array_equal(spared.table.losses, whole.table.losses)
  assert 0.0 < spared.table.losses.mean() < 1.0
  assert spared.certificate.index == whole.certificate.index is not None
  costs = spared.cost, whole.cost
  decoded = [sum(one.num_decoded for one in cost.settings) for cost in costs]
  assert 0 < decoded[0] < decoded[1]
  assert costs[0].trace_seconds > 0 == costs[1].trace_seconds
  assert costs[0].total_seconds > costs[0].full_seconds + costs[0].trace_seconds
  assert 'its exits' in costs[0].describe()
  assert 'its exits' not in costs[1].describe()


def never(bound, policy):
  return False


@pytest.mark.slow
@jax.default_matmul_precision('highest')
def test_extending_nothing_is_decoding():
  bound, inputs = cases.bound(), cases.inputs()
  options = dict(max_length=cases.T, eos_id=cases.EOS_ID)
  nothing = np.zeros((cases.B, cases.T), np.int32)
  state = decoding.start(
    bound, inputs, policy=policy_of(RULES['margin'](0.5)), **options
  )
  never = np.full(cases.T, np.inf, np.float32)
  found = decoding.extend(state, nothing, nothing[:, 0], never)
  full = decoding.generate(bound, inputs, **options)
  np.testing.assert_array_equal(found[0], full.tokens)
  np.testing.assert_array_equal(found[1], full.lengths)
  # Position by position it sees what a block of them sees.
  trace = decoding.trace(state, found[0], found[1])
  said = np.arange(cases.T) < np.asarray(full.lengths)[:, None]
  for one, other in zip(
    jax.tree.leaves(found[2]), jax.tree.leaves(trace), strict=True
  ):
    np.testing.assert_allclose(one[said], other[said], atol=1e-5)

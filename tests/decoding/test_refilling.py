"""Continuous batching: slots change hands, results do not."""

import jax
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits

# A row that is surer (its first source token is more) exits after layer 1 and
# says 1, 2, 4; the others go on longer.
REQUESTS = [[1], [2, 3], [1, 2, 1], [3], [2], [1, 1], [3, 1], [2, 2]]
S, T = 4, 5
EOS_ID = 4
RULE = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)


def _alone(request, *, rng=None, sampler=None, eos_id=EOS_ID, **options):
  source = np.pad(request, (0, S - len(request)))[None]
  result = decoding.generate(
    toy.toy_bound(),
    source,
    policy=decoding.ComputePolicy(exit_rule=RULE),
    sampler=sampler,
    max_length=T,
    eos_id=eos_id,
    rng=rng,
    **options,
  )
  return jax.tree.map(lambda leaf: np.asarray(leaf)[0], result)


def _queue(requests=REQUESTS, depth_loop=None, **options):
  return decoding.decode_queue(
    toy.toy_bound(depth_loop=depth_loop),
    requests,
    policy=decoding.ComputePolicy(exit_rule=RULE),
    max_length=T,
    **{'num_slots': 3, 'source_length': S, 'eos_id': EOS_ID, **options},
  )


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'steps': 2, 'refill_at': 3},
    {'num_slots': 1},
    *(
      pytest.param(options, marks=pytest.mark.slow)
      for options in (
        {'steps': 1, 'refill_at': 1},
        {'num_slots': 16},
        {'depth_loop': decoding.WhileDepthLoop(), 'steps': 3},
      )
    ),
  ],
)
def test_every_request_is_decoded_as_if_alone(options):
  results = dict(_queue(**options))
  assert sorted(results) == list(range(len(REQUESTS)))
  lengths = set()
  for number, request in enumerate(REQUESTS):
    expected = _alone(request)
    lengths.add(int(expected.lengths))
    jax.tree.map(
      lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
      results[number],
      expected,
    )
  assert len(lengths) > 1


def test_a_watch_is_told_how_far_requests_are():
  looks = []
  results = dict(
    _queue(steps=1, refill_at=1, watch=lambda lengths: looks.append(lengths))
  )
  last = {}
  for lengths in looks:
    assert 1 <= len(lengths) <= 3
    for request, length in lengths.items():
      # A look per token: it has one more than before.
      assert length == last.get(request, 0) + 1
      last[request] = length
  assert last == {r: int(result.lengths) for r, result in results.items()}


@pytest.mark.slow
def test_noise_follows_the_request():
  sampler, rng = decoding.Temperature(1.0), jax.random.key(4)
  options = dict(sampler=sampler, rng=rng, eos_id=-1)
  few, many = (
    dict(_queue(num_slots=slots, steps=2, **options)) for slots in (2, 8)
  )
  for number, request in enumerate(REQUESTS):
    np.testing.assert_array_equal(few[number].tokens, many[number].tokens)
    key = jax.random.fold_in(rng, number)[None]
    alone = _alone(request, sampler=sampler, rng=key, eos_id=-1)
    np.testing.assert_array_equal(few[number].tokens, alone.tokens)


@pytest.mark.slow
def test_a_slot_holds_all_beams_of_a_request():
  options = dict(
    sampler=decoding.BeamSearch(3), num_samples=2, suppressed_tokens=[8]
  )
  results = dict(_queue(num_slots=2, steps=2, **options))
  for number, request in enumerate(REQUESTS):
    jax.tree.map(
      lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
      results[number],
      _alone(request, **options),
    )


def test_a_refilled_slot_brings_its_own_prefix():
  def start(sources, prefix, **options):
    return decoding.start(
      toy.toy_bound(),
      np.array(sources),
      max_length=T,
      eos_id=-1,
      forced_prefix=np.array(prefix),
      **options,
    )

  state = decoding.advance(start([[1, 2], [2, 1]], [[5], [6]]), 2)
  new = start([[3, 1]], [[7, 2, 9]])
  state = decoding.refill(state, [1], new)
  result = decoding.finish(decoding.advance(state))
  np.testing.assert_array_equal(result.prefix_lengths, [1, 3])
  np.testing.assert_array_equal(result.tokens[1, :3], [7, 2, 9])
  state = decoding.start(
    toy.toy_bound(), np.ones((2, 2), int), max_length=T, eos_id=-1
  )
  with pytest.raises(ValueError, match='differ in policy'):
    decoding.refill(state, [1], new)


def test_requests_are_read_as_they_are_needed():
  read = []

  def source():
    for number, request in enumerate(REQUESTS):
      read.append(number)
      yield request

  results = _queue(source(), num_slots=2, eos_id=-1)
  assert not read
  next(results)
  assert len(read) <= 4
  assert len(list(results)) == len(REQUESTS) - 1


def test_no_requests_give_no_results():
  assert list(_queue([])) == []


def test_few_shapes_are_compiled():
  """Another number of requests and other lengths compile nothing."""
  options = dict(num_slots=4, steps=1, refill_at=1)
  for number in (1, 2, 4, 7, len(REQUESTS)):
    list(_queue(REQUESTS[:number], **options))
  counted = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
      counted.append(event)
      if event.endswith('backend_compile_duration')
      else None
    )
  )
  list(_queue([[3, 2, 1], [1], *REQUESTS, [2]], **options))
  assert not counted


@pytest.mark.parametrize(
  ('requests', 'options', 'message'),
  [
    ([[1], []], {}, r'request 1 has shape \[0\]; give 1 to 4'),
    ([[1] * 5], {}, r'request 0 has shape \[5\]'),
    ([[1]], {'num_slots': 0}, 'num_slots'),
    ([[1]], {'forced_prefix': [[2]]}, 'forced_prefix .* start and refill'),
    ([[1]], {'steps': 0}, 'steps'),
    ([[1]], {'refill_at': 4}, 'refill_at'),
  ],
)
def test_bad_requests_are_named(requests, options, message):
  with pytest.raises(ValueError, match=message):
    list(_queue(requests, **options))


def test_decodes_that_do_not_go_together_are_refused():
  def start(length, eos_id=EOS_ID):
    return decoding.start(
      toy.toy_bound(),
      np.ones((2, S), np.int32),
      max_length=length,
      eos_id=eos_id,
    )

  with pytest.raises(ValueError, match='differ in the lengths'):
    decoding.refill(start(T), np.array([0, 1]), start(T + 1))
  with pytest.raises(ValueError, match='differ in eos_id'):
    decoding.refill(start(T), np.array([0, 1]), start(T, eos_id=3))

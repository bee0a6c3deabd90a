"""Beam search: equal to a plain reference, hypothesis by hypothesis.

The model, its inputs and programs are those of the laws (`policy_cases`), and
the laws hold for a beam search as for any policy (`test_policy_laws`).
"""

import dataclasses
import functools

import beam_reference
import jax
import jax.numpy as jnp
import numpy as np
import policy_cases as cases
import pytest
import toy_decoder as toy

from calm_jax import decoding, exits

K = 3
PREFIXES = ((5, 6), (7,), (), (1, 1, 30))
SUPPRESSED = (13, 27, 18)
LOOPS = (
  decoding.WhileDepthLoop(),
  decoding.UnrolledDepthLoop(),
  decoding.CompactingDepthLoop(),
)


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def padded(prefixes):
  width = max(map(len, prefixes))
  return np.array(
    [[*tokens, *[0] * (width - len(tokens))] for tokens in prefixes]
  )


@functools.cache
def decode(
  threshold=None,
  *,
  length_penalty=0.6,
  num_samples=K,
  constrained=False,
  eos_id=cases.EOS_ID,
  depth_loop=LOOPS[0],
  **slots,
):
  rule = exits.NeverExit()
  if threshold is not None:
    rule = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
  constraints = {}
  if constrained:
    constraints = dict(
      forced_prefix=padded(PREFIXES), suppressed_tokens=SUPPRESSED
    )
  return cases.host(
    decoding.generate(
      cases.decoder(),
      cases.prepared(depth_loop.traced_layers),
      cases.inputs(),
      policy=decoding.ComputePolicy(exit_rule=rule, **slots),
      sampler=decoding.BeamSearch(K, length_penalty),
      max_length=cases.T,
      eos_id=eos_id,
      num_samples=num_samples,
      depth_loop=depth_loop,
      **constraints,
    )
  )


def assert_agree(one, other, rows=slice(None)):
  for field in dataclasses.fields(one):
    np.testing.assert_allclose(
      getattr(one, field.name)[rows],
      getattr(other, field.name)[rows],
      atol=1e-4,
      err_msg=field.name,
    )


@pytest.mark.parametrize(
  ('threshold', 'length_penalty', 'constrained'),
  [
    (None, 0.6, False),
    (None, 3.0, False),
    (0.31, 0.6, False),
    (0.3, 0.6, True),
  ],
)
def test_equals_the_reference(threshold, length_penalty, constrained):
  result = decode(
    threshold, length_penalty=length_penalty, constrained=constrained
  )
  layers, num_finished = set(), []
  for row, source in enumerate(cases.inputs()):
    reference = beam_reference.Reference(
      cases.CONFIG,
      cases.params(),
      source,
      max_length=cases.T,
      threshold=threshold,
      suppressed=SUPPRESSED if constrained else (),
      prefix=PREFIXES[row] if constrained else (),
    )
    finished, live = reference.search(K, length_penalty, cases.EOS_ID)
    num_finished.append(len(finished))
    gaps = np.abs(np.array(reference.margins) - (threshold or np.inf))
    assert not gaps.size or gaps.min() > 1e-4, 'no threshold in a gap'
    for place, expected in enumerate([*finished, *live][:K]):
      length = len(expected.tokens)
      assert result.lengths[row, place] == length
      assert result.tokens[row, place, :length].tolist() == [*expected.tokens]
      assert (result.tokens[row, place, length:] == 0).all()
      assert result.exit_layers[row, place, :length].tolist() == [
        *expected.exit_layers
      ]
      np.testing.assert_allclose(
        result.scores[row, place], expected.score, atol=1e-4
      )
      layers.update(expected.exit_layers)
  assert layers == set(range(1, cases.L + 1) if threshold else [cases.L])
  assert max(num_finished) > K  # so that the pool had to choose


@pytest.mark.parametrize(
  'options',
  [
    dict(
      depth_loop=LOOPS[1],
      # Blocks smaller than what layers lack.
      cache_fill=decoding.DeferredExitState(block_size=3),
    ),
    dict(depth_loop=LOOPS[2]),
    dict(readout=decoding.PrunedVocabulary(num_blocks=7, block_size=6)),
  ],
)
def test_loops_exact_fills_and_a_shortlist_of_all_agree(options):
  expected = decode(0.31)
  assert (expected.exit_layers < cases.L).any()
  assert_agree(decode(0.31, **options), expected)


@pytest.mark.parametrize(
  'options',
  [
    dict(readout=decoding.PrunedVocabulary(num_blocks=3, block_size=6)),
    dict(cache_fill=decoding.ProjectFirstExitState()),
  ],
)
@pytest.mark.slow
def test_loops_agree_on_other_slots(options):
  results = [
    decode(0.31, depth_loop=depth_loop, constrained=True, **options)
    for depth_loop in LOOPS
  ]
  for result in results[1:]:
    assert_agree(result, results[0])
  assert (results[0].tokens != decode(0.31, constrained=True).tokens).any()


def test_fewer_returned_ones_are_the_best():
  """A request for one stops sooner, which must not change it."""
  assert_agree(
    decode(0.31, num_samples=1),
    jax.tree.map(lambda leaf: leaf[:, 0], decode(0.31)),
  )


def search(
  sampler,
  *,
  max_length=4,
  eos_id=4,
  rule=None,
  inputs=((1, 2), (2, 0)),
  **options,
):
  rule = rule or exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)
  state = decoding.start(
    toy.toy_decoder(),
    toy.toy_params(),
    np.array(inputs),
    policy=decoding.ComputePolicy(exit_rule=rule),
    sampler=sampler,
    max_length=max_length,
    eos_id=eos_id,
    **options,
  )
  return state


def whole(state):
  return cases.host(decoding.finish(decoding.advance(state)))


def test_pieces_make_the_whole_and_show_the_way():
  expected = whole(search(decoding.BeamSearch(3), num_samples=3))
  state = search(decoding.BeamSearch(3), num_samples=3)
  nothing = decoding.finish(state)
  assert (nothing.lengths == 0).all() and (nothing.exit_layers == -1).all()
  for steps in (1, 2, 5):
    state = decoding.advance(state, steps)
    result = cases.host(decoding.finish(state))
    # Records fit together at any time: every token has its exit layer.
    decoded = np.arange(4) < result.lengths[..., None]
    np.testing.assert_array_equal(result.exit_layers > 0, decoded)
    assert (result.tokens[~decoded] == 0).all()
  assert_agree(result, expected)


def test_inside_another_program_with_traced_numbers():
  def decode(threshold, length_penalty, prefix, suppressed):
    rule = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
    sampler = decoding.BeamSearch(3, length_penalty)
    state = search(
      sampler,
      rule=rule,
      num_samples=2,
      forced_prefix=prefix,
      suppressed_tokens=suppressed,
    )
    return decoding.finish(decoding.advance(state))

  arguments = (0.6, 0.8, jnp.array([[3, 0], [5, 6]]), jnp.array([1, 2]))
  assert_agree(jax.jit(decode)(*arguments), decode(*arguments))


def test_one_beam_is_greedy():
  one, greedy = (
    whole(search(sampler))
    for sampler in (decoding.BeamSearch(1, 2.0), decoding.Greedy())
  )
  assert_agree(one, greedy)
  assert set(greedy.lengths) == {3, 4}


def test_what_never_ends_is_ranked_and_what_is_not_there_is_empty():
  """Of outputs of one token there are ten, none of which may end."""
  result = whole(
    search(decoding.BeamSearch(12), num_samples=12, max_length=1, eos_id=-1)
  )
  for row in range(2):
    assert sorted(result.tokens[row, :10, 0]) == list(range(10))
  assert (np.diff(result.scores[:, :10]) <= 0).all()
  assert (result.lengths[:, :10] == 1).all()
  assert (result.lengths[:, 10:] == 0).all()
  assert (result.exit_layers[:, 10:] == -1).all()
  assert (result.scores[:, 10:] == -np.inf).all()


def test_a_longer_penalty_makes_longer_outputs():
  lengths = [
    decode(0.31, length_penalty=penalty).lengths[:, 0].mean()
    for penalty in (0.0, 0.6, 3.0)
  ]
  assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize(
  ('sampler', 'num_samples', 'message'),
  [
    (decoding.BeamSearch(0), 1, 'num_beams 0 must'),
    (decoding.BeamSearch(2.5), 1, 'num_beams 2.5 must'),
    (decoding.BeamSearch(4, -0.5), 1, 'length_penalty -0.5 .* give 0'),
    (decoding.BeamSearch(4, float('nan')), 1, 'length_penalty nan'),
    (decoding.BeamSearch(3), 4, 'num_samples is 4, but .* num_beams=3'),
    (decoding.BeamSearch(1), 2, 'num_samples is 2, but .* num_beams=1'),
  ],
)
def test_bad_searches_are_refused(sampler, num_samples, message):
  with pytest.raises(ValueError, match=message):
    search(sampler, num_samples=num_samples)

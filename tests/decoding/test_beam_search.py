"""Beam search: equal to a plain reference, hypothesis by hypothesis.

The model, its inputs and programs are those of the laws (`policy_cases`), and
the laws hold for a beam search as for any policy (`test_policy_laws`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy
from tools import beam_reference

from calm_jax import decoding, exits

K = 3
LOOPS = (
  decoding.WhileDepthLoop(),
  decoding.UnrolledDepthLoop(),
  decoding.CompactingDepthLoop(),
)


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def start(
  threshold,
  *,
  length_penalty=0.6,
  num_samples=K,
  constrained=False,
  depth_loop=LOOPS[0],
  **slots,
):
  # A threshold per row: the program that the laws have compiled already.
  rule = exits.ConfidenceExit(
    exits.SoftmaxMargin(), jnp.full((cases.B,), threshold)
  )
  constraints = {}
  if constrained:
    constraints = dict(
      forced_prefix=cases.PREFIXES, suppressed_tokens=cases.SUPPRESSED
    )
  return decoding.start(
    cases.bound(depth_loop),
    cases.inputs(),
    policy=decoding.ComputePolicy(exit_rule=rule, **slots),
    sampler=decoding.BeamSearch(K, length_penalty),
    max_length=cases.T,
    eos_id=cases.EOS_ID,
    num_samples=num_samples,
    **constraints,
  )


def whole(state):
  return cases.host(decoding.finish(decoding.advance(state)))


@functools.cache
def decode(threshold, **options):
  return whole(start(threshold, **options))


def assert_agree(one, other, rows=slice(None)):
  leaves = jax.tree.leaves_with_path(one)
  for (path, leaf), expected in zip(
    leaves, jax.tree.leaves(other), strict=True
  ):
    np.testing.assert_allclose(
      leaf[rows], expected[rows], atol=1e-4, err_msg=jax.tree_util.keystr(path)
    )


@pytest.mark.parametrize(
  ('threshold', 'length_penalty', 'constrained'),
  [
    (1.0, 0.6, False),
    (1.0, 3.0, False),
    (0.31, 0.6, False),
    pytest.param(0.3, 0.6, True, marks=pytest.mark.slow),
  ],
)
def test_equals_the_reference(threshold, length_penalty, constrained):
  """At 1.0 the full model; that NeverExit is the same, law 2 asserts."""
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
      threshold=None if threshold == 1.0 else threshold,
      suppressed=cases.SUPPRESSED if constrained else (),
      prefix=np.trim_zeros(cases.PREFIXES[row]) if constrained else (),
    )
    finished, live = reference.search(K, length_penalty, cases.EOS_ID)
    num_finished.append(len(finished))
    gaps = np.abs(np.array(reference.margins) - threshold)
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
  assert layers == set(range(1, cases.L + 1) if threshold < 1.0 else [cases.L])
  assert max(num_finished) > K  # so that the pool had to choose


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    dict(
      depth_loop=LOOPS[1],
      # Blocks smaller than what layers lack.
      cache_fill=decoding.DeferredExitState(block_size=3),
      readout=decoding.PrunedVocabulary(num_blocks=7, block_size=6),
    ),
    pytest.param(dict(depth_loop=LOOPS[2]), marks=pytest.mark.slow),
  ],
)
def test_loops_exact_fills_and_a_shortlist_of_all_agree(options):
  expected = decode(0.31)
  assert (expected.exit_layers < cases.L).any()
  found = decode(0.31, **options)
  if 'cache_fill' in options:
    # The same hypotheses, made by other work.
    found = dataclasses.replace(found, work=expected.work)
  assert_agree(found, expected)


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


@pytest.mark.slow
def test_fewer_returned_ones_are_the_best():
  """A request for one stops sooner, which must not change it."""
  assert_agree(
    decode(0.31, num_samples=1),
    jax.tree.map(lambda leaf: leaf[:, :1], decode(0.31)),
  )


def test_pieces_make_the_whole_and_show_the_way():
  state = start(0.31)
  nothing = decoding.finish(state)
  assert (nothing.lengths == 0).all() and (nothing.exit_layers == -1).all()
  for steps in (1, 3, 5):
    state = decoding.advance(state, steps)
    result = cases.host(decoding.finish(state))
    # Records fit together at any time: every token has its exit layer.
    decoded = np.arange(cases.T) < result.lengths[..., None]
    np.testing.assert_array_equal(result.exit_layers > 0, decoded)
    assert (result.tokens[~decoded] == 0).all()
  assert_agree(result, decode(0.31))


@pytest.mark.slow
def test_inside_another_program_with_traced_numbers():
  @jax.jit
  def inside(threshold, length_penalty):
    state = start(threshold, length_penalty=length_penalty)
    return decoding.finish(decoding.advance(state))

  assert_agree(cases.host(inside(0.31, 0.6)), decode(0.31))


def search(sampler, *, max_length=4, eos_id=4, **options):
  return decoding.start(
    toy.toy_bound(),
    np.array([[1, 2], [2, 0]]),
    policy=decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)
    ),
    sampler=sampler,
    max_length=max_length,
    eos_id=eos_id,
    **options,
  )


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

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
  return np.array([[*tokens, *[0] * (width - len(tokens))] for tokens in prefixes])


@functools.cache
def decode(
  threshold=None,
  *,
  length_penalty=0.6,
  num_samples=K,
  constrained=False,
  eos_id=cases.EOS_ID,
  depth_loop=LOOPS[0],
  cache_fill=decoding.ProjectExitState(),
  readout=decoding.FullVocabulary(),
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
      policy=decoding.ComputePolicy(
        exit_rule=rule, cache_fill=cache_fill, readout=readout
      ),
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

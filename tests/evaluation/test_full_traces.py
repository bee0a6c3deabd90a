"""What follows from the full model's outputs is what decoding says."""

import re

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, evaluation, exits

N = 22
CLASSIFIER = exits.Classifier(
  np.random.default_rng(3).normal(size=cases.CONFIG.embed_dim) / 12.0, 0.1
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


def count_decoded(monkeypatch):
  """Returns a list that gets the sizes of the batches decoded wholly."""
  sizes, generate = [], decoding.generate

  def counted(bound, inputs, **options):
    sizes.append(len(inputs))
    return generate(bound, inputs, **options)

  monkeypatch.setattr(decoding, 'generate', counted)
  return sizes


def decode_both(decode, data, make_rule, thresholds, **slots):
  """Yields (with traces, everything decoded) at every threshold."""
  policies = [policy_of(make_rule(value), **slots) for value in thresholds]
  full = decode(data, policy=decoding.full_model(policies[0]))
  traces = decode.trace(data, full, policies[0])
  for policy in policies:
    yield (
      decode(data, policy=policy, traces=traces),
      decode(data, policy=policy),
    )


def assert_same(found, expected):
  for name in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), err_msg=name
    )
  for name in ('confidences', 'rejected_confidences', 'scores'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(expected, name), atol=1e-4, err_msg=name
    )
  assert found.texts == expected.texts
  assert found.example_ids == expected.example_ids


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('depth_loop', ['while', 'unrolled'])
@jax.default_matmul_precision('highest')
def test_it_equals_decoding_everything(rule, depth_loop):
  lines = []
  bound = cases.bound(decoding.DEPTH_LOOPS[depth_loop])
  decode = dataset_decoder(bound, progress=lines.append)
  for found, expected in decode_both(
    decode, batches(), RULES[rule], THRESHOLDS
  ):
    assert_same(found, expected)
  told = [line for line in lines if line.startswith('of ')]
  counts = np.array([re.findall(r'[0-9]+', line) for line in told], int)
  of, derived, continued, decoded = counts.T
  np.testing.assert_array_equal(of, N)
  np.testing.assert_array_equal(derived + continued + decoded, N)
  assert derived[0] == N
  assert continued.sum() > N and decoded.sum() < N // 4, counts

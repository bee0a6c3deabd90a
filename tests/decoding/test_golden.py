"""Early exit against the official release, token by token.

With the release's own propagation (`ProjectFirstExitState`), tokens and exit
layers must equal its arrays exactly, at batch 1 as it ran and at batch 8, where
our rows exit one by one. Prints how close any confidence came to its threshold.
"""

import functools

import jax
import numpy as np
import pytest
from cases import golden_calm

from calm_jax import decoding, exits, model

METHODS = {
  'softmax_diff': (0.1, 0.3, 0.6, 0.9),
  'softmax_max': (0.2, 0.4, 0.6, 0.9),
  'state': (0.75, 0.85, 0.9),
  'meta': (0.5, 0.7, 0.9),
}


@functools.cache
def _release():
  params, arrays = golden_calm.load()
  classifier = params['decoder'].pop('meta_cls')
  kernel, bias = classifier['kernel'], classifier['bias']
  measures = {
    'softmax_diff': exits.SoftmaxMargin(),
    'softmax_max': exits.SoftmaxMaximum(),
    'state': exits.StateSimilarity(),
    'meta': exits.Classifier(kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]),
  }
  decoder = model.as_layered_decoder(golden_calm.CONFIG)
  bound = decoding.bind(decoder, params, depth_loop=decoding.WhileDepthLoop())
  return bound, arrays, measures


def _decode(inputs, policy):
  bound, arrays, _ = _release()
  with jax.default_matmul_precision('highest'):
    return decoding.generate(
      bound,
      inputs,
      policy=policy,
      max_length=int(arrays['decode_length']),
    )


def test_full_model_says_the_same_tokens():
  _, arrays, _ = _release()
  result = _decode(arrays['inputs'], decoding.ComputePolicy())
  np.testing.assert_array_equal(result.tokens, arrays['full/tokens'])


@pytest.mark.parametrize(
  'batch_size', [pytest.param(1, marks=pytest.mark.slow), 8]
)
@pytest.mark.parametrize('method', METHODS)
def test_early_exit_equals_the_release(method, batch_size):
  _, arrays, measures = _release()
  closest = np.inf
  for threshold in METHODS[method]:
    policy = decoding.ComputePolicy(
      cache_fill=decoding.ProjectFirstExitState(),
      exit_rule=exits.ConfidenceExit(measures[method], threshold),
    )
    for row in range(0, len(arrays['inputs']), batch_size):
      rows = slice(row, row + batch_size)
      result = _decode(arrays['inputs'][rows], policy)
      expected = {
        name: arrays[f'{method}@{threshold}/{name}'][rows]
        for name in ('tokens', 'exits', 'confidences')
      }
      np.testing.assert_array_equal(result.tokens, expected['tokens'])
      np.testing.assert_array_equal(result.exit_layers, expected['exits'])
      decoded = expected['exits'] > 0
      confidences = expected['confidences'][decoded]
      np.testing.assert_allclose(
        np.asarray(result.confidences)[decoded], confidences, atol=1e-5
      )
      closest = min(closest, np.abs(confidences - threshold).min())
  print(f'{method}: smallest |confidence - threshold| {closest:.2e}')
  assert closest > 1e-5


def test_the_paper_propagation_is_another_one():
  """Otherwise the exact equality above would say nothing about the fill."""
  _, arrays, measures = _release()
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(measures['softmax_diff'], 0.3)
  )
  result = _decode(arrays['inputs'], policy)
  assert (result.tokens != arrays['softmax_diff@0.3/tokens']).any()

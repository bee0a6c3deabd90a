"""A model in 8 bits is certified by its distance to the one in float."""

import dataclasses

import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import (
  decoding,
  evaluation,
  exits,
  quantisation,
  records,
  runs,
)
from calm_jax.calibration import calibrate

UNROLLED = decoding.UnrolledDepthLoop()
POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
)
SETTINGS = (1.0, 0.4)


def bound(weights=None):
  return decoding.bind(
    cases.decoder(), cases.params(), depth_loop=UNROLLED, weights=weights
  )


def batches():
  inputs = np.random.default_rng(2).integers(2, cases.V, (40, cases.S))
  return [{'encoder_input_tokens': inputs, 'num_valid': 40}]


def same_text(prediction, references):
  return float(prediction in references)


def setup():
  return dict(
    detokenize=lambda ids: ' '.join(map(str, ids)),
    max_length=cases.T,
    eos_id=cases.EOS_ID,
  )


def run(**options):
  decode = evaluation.DatasetDecoder(
    bound=bound('int8'), reference=bound(), **setup()
  )
  loss = evaluation.textual_loss(same_text)
  plan = evaluation.CalibrationPlan(
    settings=SETTINGS, loss=loss, tolerance=0.5, error_rate=0.05
  )
  return evaluation.run_calibration(
    decode, batches(), POLICY, plan, full_grid=True, **options
  )


@pytest.mark.slow
def test_losses_are_distances_to_the_float_model():
  found = run()
  full, *by_setting = (
    evaluation.decode_dataset(one, batches(), policy=policy, **setup())
    for one, policy in (
      (bound(), decoding.ComputePolicy()),
      *((bound('int8'), decoding.with_setting(POLICY, s)) for s in SETTINGS),
    )
  )
  np.testing.assert_array_equal(found.full.tokens, full.tokens)
  differs = [
    [one != two for one, two in zip(decoded.texts, full.texts, strict=True)]
    for decoded in by_setting
  ]
  np.testing.assert_array_equal(found.table.losses.T, np.float64(differs))
  # At a threshold of 1 the weights alone change something.
  assert 0 < found.table.losses[:, 0].mean() < 1
  assert found.certificate.decoding.weights == {'type': 'int8'}
  assert found.certificate.context['weights'] == {'type': 'int8'}


def test_a_model_in_8_bits_needs_the_one_in_float():
  with pytest.raises(ValueError, match=r'give it as reference=decoding.bind\('):
    evaluation.calibrate(bound('int8'), batches(), POLICY, SETTINGS, **setup())
  with pytest.raises(ValueError, match='the reference has weights in 8 bits'):
    evaluation.DatasetDecoder(
      bound=bound('int8'), reference=bound('int8'), **setup()
    )


def test_nothing_follows_from_a_model_in_8_bits():
  """A last digit may move a state to the next of 255 steps."""
  exact = dataclasses.replace(POLICY, cache_fill=decoding.CatchUp())
  assert evaluation.follows_from_full(bound(), exact)
  assert not evaluation.follows_from_full(bound('int8'), exact)


CONTEXT = runs.decoding_context(
  parameters='sha256:1', tokenizer='sha256:2', dtype='float32', max_length=8
)
FLOAT = dataclasses.replace(CONTEXT, weights='float')
INT8 = dataclasses.replace(CONTEXT, weights={'type': 'int8'})


def certificate(context, *, losses):
  return calibrate(
    np.full((200, 1), losses),
    [0.6],
    tolerance=0.1,
    error_rate=0.05,
    context={**context.write(), 'policy': decoding.describe(POLICY)},
  )


def test_what_was_certified_in_8_bits_holds_in_8_bits():
  made = certificate(INT8, losses=0.0)
  assert runs.weights_of(made) == quantisation.Int8Weights()
  policy = runs.apply_certificate(made, POLICY, INT8)
  assert policy.exit_rule.threshold == 0.6
  with pytest.raises(ValueError, match='weights: certified for .*int8'):
    runs.apply_certificate(made, POLICY, FLOAT)
  keeps = dataclasses.replace(INT8, weights={'type': 'int8', 'encoder': True})
  with pytest.raises(ValueError, match='weights.encoder: certified for None'):
    runs.apply_certificate(made, POLICY, keeps)
  # The full model in 8 bits is not the full model.
  full = decoding.full_model(POLICY)
  with pytest.raises(ValueError, match='does not hold for this policy'):
    runs.check_covered(made, full, INT8)
  runs.check_covered(certificate(FLOAT, losses=0.0), full, FLOAT)


def test_where_nothing_is_certified_the_full_model_is_in_float():
  made = certificate(INT8, losses=1.0)
  assert not made.certified and runs.weights_of(made) is None
  policy = runs.apply_certificate(made, POLICY, FLOAT)
  assert isinstance(policy.exit_rule, exits.NeverExit)
  runs.check_covered(made, policy, FLOAT)
  with pytest.raises(ValueError, match="weights: certified for 'float', got"):
    runs.apply_certificate(made, POLICY, INT8)


def test_certificates_of_before_are_of_float_weights():
  written = FLOAT.write()
  del written['weights']
  assert records.DecodingContext.read(written).weights == 'float'
  assert records.DecodingContext.read({'policy': {}}).weights is None

"""Two exits compared on given outputs: as the model, and a decode, see them."""

import jax
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy

from calm_jax import calibration, decoding, evaluation, exits, model

UNROLLED = decoding.UnrolledDepthLoop()
EXIT_LAYER = 2


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def batches():
  """The four inputs in batches of 2 and 3, of which the last one fills up."""
  inputs = cases.inputs()
  filled = np.concatenate([inputs[2:], inputs[:1]])
  return [
    {'encoder_input_tokens': inputs[:2]},
    {'encoder_input_tokens': filled, 'num_valid': 2},
  ]


def outputs():
  """The full model's outputs, the first cut so that something ends early."""
  tokens = np.array(cases.decode('full').tokens)
  tokens[0, 5:] = 0
  return tokens


def agreement(bound=None, tokens=None, **options):
  return evaluation.shallow_agreement(
    cases.bound() if bound is None else bound,
    batches(),
    outputs() if tokens is None else tokens,
    **{'exit_layer': EXIT_LAYER, **options},
  )


def reference(exit_layer, suppressed=()):
  """Returns the same by the parallel model: margins and agreement [M]."""
  tokens = outputs()
  shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  states = model.layer_states(
    cases.CONFIG, cases.params(), cases.inputs(), shifted
  )
  logits = np.array(
    [
      model.output_logits(cases.CONFIG, cases.params(), state)
      for state in (states[exit_layer - 1], states[-1])
    ]
  )
  logits[..., list(suppressed)] = -np.inf
  said = logits.argmax(axis=-1)
  second, best = np.moveaxis(
    np.sort(np.asarray(jax.nn.softmax(logits[0])), axis=-1)[..., -2:], -1, 0
  )
  counts = np.flip(np.cumsum(np.flip(tokens, 1), axis=1), 1) > 0
  return (best - second)[counts], (said[0] == said[1])[counts]


@pytest.mark.slow
@pytest.mark.parametrize(
  'exit_layer', [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3)), 2]
)
def test_it_is_what_the_parallel_model_says(exit_layer):
  found = agreement(exit_layer=exit_layer)
  confidences, agrees = reference(exit_layer)
  np.testing.assert_allclose(found.confidences, confidences, atol=1e-5)
  np.testing.assert_array_equal(found.agrees, agrees)
  # Only tokens count: the padding behind an end would be 3 + T more.
  assert found.agrees.size == np.count_nonzero(outputs())
  if exit_layer > 1:
    assert 0 < found.agrees.mean() < 1


@pytest.mark.slow
def test_layers_apart_say_the_same():
  found, apart = agreement(), agreement(cases.bound(UNROLLED))
  np.testing.assert_allclose(found.confidences, apart.confidences, atol=1e-5)
  np.testing.assert_array_equal(found.agrees, apart.agrees)


@pytest.mark.slow
def test_a_decode_by_the_two_exits_sees_these_confidences():
  """At a threshold of 1 its shallow exit looks and goes on every time."""
  tokens = cases.decode('full').tokens
  case = cases.case('free_two_exits')
  policy = case.policy(np.arange(cases.B), 1.0)
  result = decoding.generate(
    cases.bound(),
    cases.inputs(),
    policy=policy,
    max_length=cases.T,
    eos_id=cases.EOS_ID,
  )
  np.testing.assert_array_equal(result.tokens, tokens)
  found = agreement(tokens=tokens)
  seen = np.asarray(result.rejected_confidences)[result.exit_layers > 0]
  np.testing.assert_allclose(found.confidences, seen, atol=1e-5)


@pytest.mark.slow
def test_suppressed_tokens_are_said_by_neither():
  found = agreement(suppressed_tokens=cases.SUPPRESSED)
  confidences, agrees = reference(EXIT_LAYER, cases.SUPPRESSED)
  np.testing.assert_allclose(found.confidences, confidences, atol=1e-5)
  np.testing.assert_array_equal(found.agrees, agrees)
  assert (np.abs(found.confidences - agreement().confidences) > 1e-3).any()


@pytest.mark.slow
def test_other_measures_see_the_states_around_the_layer():
  found = agreement(measure=exits.StateSimilarity())
  tokens = outputs()
  shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  states = model.layer_states(
    cases.CONFIG, cases.params(), cases.inputs(), shifted
  )
  before, after = np.asarray(states[0]), np.asarray(states[1])
  lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
  cosine = (before * after).sum(axis=-1) / lengths
  counts = np.flip(np.cumsum(np.flip(tokens, 1), axis=1), 1) > 0
  np.testing.assert_allclose(
    found.confidences, np.maximum(cosine[counts], 0.0), atol=1e-5
  )


def test_the_threshold_is_that_of_the_mixture():
  found = agreement()
  mixture = calibration.fit_beta_mixture(found.confidences, found.agrees)
  threshold = evaluation.free_threshold(
    cases.bound(), batches(), outputs(), exit_layer=EXIT_LAYER
  )
  assert threshold == mixture.threshold()
  assert isinstance(threshold, float) and 0.3 <= threshold <= 0.9


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match=r'exit_layer 4 must be .* in 1\.\.3'):
    agreement(exit_layer=4)
  with pytest.raises(ValueError, match=r'exit_layer 1 must be .* in 2\.\.3'):
    agreement(exit_layer=1, measure=exits.StateSimilarity())
  with pytest.raises(ValueError, match='hold 4 inputs and tokens 3 outputs'):
    agreement(tokens=outputs()[:3])
  with pytest.raises(ValueError, match='the outputs hold no tokens'):
    agreement(tokens=0 * outputs())
  # The toy's layers never agree on these tokens.
  with pytest.raises(ValueError, match='0 of 4 pairs agree;'):
    evaluation.free_threshold(
      toy.toy_bound(depth_loop=decoding.WhileDepthLoop()),
      [{'encoder_input_tokens': np.array([[1]])}],
      [toy.FULL_TOKENS],
      exit_layer=1,
    )

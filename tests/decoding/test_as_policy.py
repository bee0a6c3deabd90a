"""What stands for a policy and a sampler, and what is refused in words."""

import jax
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, deployment, evaluation, exits

RULE = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)
INPUTS = np.array([[1, 2], [2, 0]])


def generate(policy=None, **options):
  return decoding.generate(
    toy.toy_bound(),
    INPUTS,
    policy=policy,
    max_length=3,
    eos_id=-1,
    **options,
  )


def test_an_exit_rule_alone_is_a_policy():
  policy = decoding.ComputePolicy(exit_rule=RULE)
  assert decoding.as_policy(RULE) == decoding.as_policy(policy) == policy
  assert decoding.as_policy(None) == decoding.ComputePolicy()
  jax.tree.map(np.testing.assert_array_equal, generate(RULE), generate(policy))
  assert (generate(RULE).exit_layers < 3).any()


def test_every_entrance_takes_one():
  decoded = evaluation.decode_dataset(
    toy.toy_bound(),
    [{'encoder_input_tokens': INPUTS}],
    detokenize=str,
    max_length=3,
    eos_id=-1,
    policy=RULE,
  )
  np.testing.assert_array_equal(decoded.tokens, generate(RULE).tokens)
  spec = deployment.ProgramSpec(source_length=2, max_length=3, policy=RULE)
  assert spec.policy.exit_rule == RULE and spec.has_threshold


@pytest.mark.parametrize(
  ('policy', 'words'),
  [
    (exits.SoftmaxMargin, r'class SoftmaxMargin.*SoftmaxMargin\(\.\.\.\)'),
    (exits.NeverExit, r'class NeverExit, written without parentheses'),
    (exits.SoftmaxMargin(), r'ConfidenceExit\(SoftmaxMargin\(\.\.\.\), 0.9\)'),
    (decoding.FullVocabulary(), r'FullVocabulary.*ComputePolicy\(readout='),
    (0.9, r'policy is 0.9; give a decoding.ComputePolicy'),
    ('margin', "policy is 'margin'"),
  ],
)
def test_what_is_no_policy_is_refused(policy, words):
  with pytest.raises(TypeError, match=words):
    generate(policy)


@pytest.mark.parametrize(
  ('sampler', 'words'),
  [
    (decoding.Temperature, r'sampler is the class Temperature'),
    (0.7, r'sampler is 0.7; give one, such as decoding.Greedy\(\)'),
    (RULE, r'sampler is ConfidenceExit'),
  ],
)
def test_what_is_no_sampler_is_refused(sampler, words):
  with pytest.raises(TypeError, match=words):
    generate(sampler=sampler)


def test_results_have_an_axis_of_samples_if_a_number_is_given():
  assert generate(RULE).tokens.shape == (2, 3)
  for number in (1, 2):
    result = generate(RULE, num_samples=number)
    assert result.tokens.shape == (2, number, 3)
    assert result.lengths.shape == (2, number)
    np.testing.assert_array_equal(result.tokens[:, 0], generate(RULE).tokens)

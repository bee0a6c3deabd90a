"""A certificate covers exactly what is decoded: policy, setting, context."""

import dataclasses

import numpy as np
import pytest
from cases import policy_cases as cases
from cases import text_cases

import calm_jax
from calm_jax import decoding, exits, records, runs
from calm_jax.calibration import calibrate

MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
PRUNED = decoding.ComputePolicy(
  exit_rule=MARGIN, readout=decoding.PrunedVocabulary(num_blocks=8)
)
CONTEXT = runs.decoding_context(
  parameters='sha256:1', tokenizer='sha256:2', dtype='float32', max_length=8
)


def certify(policy, settings, *, losses=0.0, context=CONTEXT, **calibration):
  described = decoding.describe(policy, settings[0])
  return calibrate(
    np.full((200, len(settings)), losses),
    settings,
    tolerance=0.1,
    error_rate=0.05,
    context={**context.write(), 'policy': described},
    **calibration,
  )


def test_a_setting_of_several_fields_is_applied_whole():
  setting = {'exit_rule.threshold': 0.6, 'readout.num_blocks': 3}
  certificate = certify(PRUNED, [setting])
  policy = runs.apply_certificate(certificate, PRUNED, CONTEXT)
  assert policy.exit_rule.threshold == certificate.threshold == 0.6
  assert policy.readout == decoding.PrunedVocabulary(num_blocks=3)
  assert runs.policy_of(certificate, 'nowhere') == policy
  runs.check_covered(certificate, policy, CONTEXT)
  for other in (PRUNED, decoding.with_setting(policy, 0.5)):
    with pytest.raises(ValueError, match='does not hold for this policy'):
      runs.check_covered(certificate, other, CONTEXT)
  # Of fields that are not set, the value is part of what was certified.
  full = dataclasses.replace(PRUNED, readout=decoding.FullVocabulary())
  with pytest.raises(ValueError, match='FullVocabulary has no field'):
    runs.apply_certificate(certificate, full, CONTEXT)


@pytest.mark.parametrize('made_open', [True, False])
@pytest.mark.parametrize('given_open', [True, False])
def test_a_length_that_a_policy_leaves_open_is_that_of_the_decode(
  made_open, given_open
):
  """In the certificate, in the policy that it is for, in both or neither."""

  def policy(is_open, length=8):
    decaying = exits.DecayingThreshold(0.5, temperature=4.0)
    rule = exits.ConfidenceExit(exits.SoftmaxMargin(), decaying)
    budget = exits.LayerBudget(rule, exits.PerPosition(2))
    made = decoding.ComputePolicy(exit_rule=budget)
    return made if is_open else decoding.at_output_length(made, length)

  certificate = certify(policy(made_open), [0.6])
  found = runs.apply_certificate(certificate, policy(given_open), CONTEXT)
  assert found.exit_rule.rule.threshold.value == 0.6
  other = policy(is_open=False, length=9)
  with pytest.raises(ValueError, match='max_length: certified for 8, got 9'):
    runs.apply_certificate(certificate, other, CONTEXT)


@pytest.mark.parametrize(
  'setting', [{'threshold': 0.6, 'vocabulary': 80}, {'exit_rule': 0.6}]
)
def test_a_setting_that_is_none_of_the_policy_certifies_nothing(setting):
  certificate = dataclasses.replace(certify(PRUNED, [0.6]), settings=[setting])
  with pytest.raises(ValueError, match="field 'vocabulary'|a whole Confidence"):
    runs.apply_certificate(certificate, PRUNED, CONTEXT)


CHANGES = {
  'parameters': 'sha256:9',
  'tokenizer': 'sha256:9',
  'sampler': decoding.describe(decoding.Temperature(0.5)),
  'prefix': 'sum up: ',
  'inputs_cut': 'otherwise',
  'input_length': 16,
  'max_length': 3,
  'suppressed_tokens': (4,),
  'weights': {'type': 'int8'},
  'dtype': 'bfloat16',
}
TOLD = {
  'backend': 'tpu',
  'matmul_precision': 'highest',
  'xla_flags': '--xla_x',
  'depth_loop': 'WhileDepthLoop',
  'batch_shape': (2, 8),
  'versions': {'jax': '9.9'},
}


def test_every_field_is_compared():
  names = {field.name for field in dataclasses.fields(records.DecodingContext)}
  assert names == {*CHANGES, *TOLD, 'policy'}
  known = dataclasses.replace(
    CONTEXT,
    prefix='',
    weights='float',
    inputs_cut='so',
    input_length=8,
    depth_loop='UnrolledDepthLoop',
    batch_shape=(1, 8),
  )
  certificate = certify(PRUNED, [0.5], context=known)
  assert certificate.decoding.differences(certificate.decoding) == (
    records.Differences()
  )
  for name, value in {**CHANGES, **TOLD}.items():
    other = dataclasses.replace(known, **{name: value})
    found = runs.certificate_differences(certificate, PRUNED, other)
    breaking, told = (found.breaking, found.told)
    if name in TOLD:
      assert not breaking and name in told[0]
    else:
      assert not told and name in breaking[0]
      # What was not written down, by an earlier release, is told.
      unknown = dataclasses.replace(known, **{name: None})
      found = unknown.differences(other)
      assert not found.breaking and name in found.told[0]


@pytest.mark.parametrize('case', cases.CASES, ids=cases.NAMES)
def test_laws_of_settings(case):
  """Over all policies: what is set, what is left out, and nothing else."""
  name, policy = case.name, case.policy(np.arange(cases.B), 0.5)
  path = decoding.threshold_path(policy)
  if path is None:
    with pytest.raises(ValueError, match='has no threshold to set'):
      decoding.with_setting(policy, 0.25)
    return
  changed = decoding.with_setting(policy, 0.25)
  everything = decoding.describe(policy, {})
  assert decoding.describe(changed, {}) != everything
  assert decoding.describe(changed) == decoding.describe(policy)
  for setting in ({path: 0.25}, {'threshold': 0.25}):
    again = decoding.with_setting(policy, setting)
    assert decoding.describe(again, {}) == decoding.describe(changed, {})
    assert decoding.describe(again, setting) == decoding.describe(policy)
  if 'per_row' not in name:
    back = decoding.with_setting(changed, 0.5)
    assert decoding.describe(back, {}) == everything
  for wrong in ('exit_rule.threshhold', 'readout', f'{path}.more', 'rule'):
    with pytest.raises(ValueError, match=wrong.split('.')[-1]):
      decoding.with_setting(policy, {wrong: 0.25})
  with pytest.raises(ValueError, match='twice'):
    decoding.with_setting(policy, {path: 0.25, 'threshold': 0.25})


@pytest.mark.parametrize(
  'sampler',
  [
    decoding.Greedy(),
    decoding.Temperature(0.7),
    decoding.TopK(5),
    decoding.Nucleus(0.9),
    decoding.BeamSearch(4),
  ],
)
def test_samplers_there_and_back(sampler):
  context = runs.decoding_context(tokenizer='', sampler=sampler)
  certificate = certify(PRUNED, [0.5], context=context)
  assert runs.sampler_of(certificate) == sampler


def test_a_generator_keeps_its_certificate_only_for_what_it_covers(tmp_path):
  """Whatever is replaced afterwards, in Python too."""
  run = text_cases.save_run(tmp_path)
  loaded = runs.load_run(run)
  policy = decoding.ComputePolicy(exit_rule=MARGIN)
  context = runs.decoding_context(**loaded.context())
  certificate = certify(policy, [0.5], context=context)
  generator = calm_jax.load(run, certificate=certificate, policy=policy)
  assert generator.certificate is certificate
  # This certificate does not say T; of all else both know the same.
  (caution,) = generator.cautions
  assert caution.startswith('max_length: not said for which')
  for change in (
    {'policy': decoding.with_setting(policy, 0.4)},
    {'sampler': decoding.Temperature()},
    {'prefix': 'sum up: '},
    {'input_length': 3},
    {'suppressed_tokens': (3,)},
    {'source': {'parameters': 'sha256:9'}},
  ):
    with pytest.raises(ValueError, match='certificate does not hold'):
      dataclasses.replace(generator, **change)
    dataclasses.replace(generator, certificate=None, **change)
  # The full model is covered by any certificate.
  dataclasses.replace(generator, policy=decoding.full_model(policy))

"""Certificates put to use: the only bridge from statistics to decoding.

A certificate holds in the context that it was made in (`DecodingContext`):
these parameters, this tokenizer, policy, sampler, kind of input and output.
Here its setting is put into a policy, and refused otherwise.
"""

import dataclasses
import os

from calm_jax import decoding, quantisation, records
from calm_jax.calibration.certificate import Certificate
from calm_jax.exits import LayerBudget


def certificate_path(run_dir: str | os.PathLike) -> str:
  """Returns where the certificate of a run lies, if it has one."""
  return os.path.join(run_dir, 'calibration', 'certificate.json')


def weights_of(certificate: Certificate) -> quantisation.Int8Weights | None:
  """Returns the weights to decode with under a certificate, for `bind`.

  Those that it was made with; where nothing was certified those of the full
  model, None for float.
  """
  if not certificate.certified:
    return None
  return quantisation.as_weights(certificate.decoding.weights)


def certificate_differences(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  context: records.DecodingContext,
) -> records.Differences:
  """Says what keeps a certificate from holding, and what else differs.

  Args:
    certificate: what calibration wrote.
    policy: the policy that is to decode, at any setting.
    context: of that decode, whatever it says of the policy.
  """
  made_in = certificate.decoding
  length = context.max_length or made_in.max_length
  if length is not None:
    policy = decoding.at_output_length(policy, length)
  try:
    described = decoding.describe(policy, certificate.settings[0])
  except ValueError as error:
    # The policy has no such setting.
    return records.Differences((str(error),))
  context = dataclasses.replace(context, policy=described)
  made_in = _for_weights(certificate, made_in)
  found = made_in.at_output_length(length).differences(context)
  rules = policy.exit_rule, getattr(policy.encoder_exit, 'rule', None)
  budgeted = any(isinstance(rule, LayerBudget) for rule in rules)
  if budgeted and not certificate.certified:
    found = found.and_breaking(
      'layer budget: no setting was certified with it, and the full model, '
      'which is then used, would exceed it'
    )
  return found


def applied(
  certificate: Certificate, policy: decoding.ComputePolicy
) -> decoding.ComputePolicy:
  """Returns the policy at the certified setting, whether it holds or not.

  Where nothing was certified that is the full model, as far as the policy's
  layer budget lets it be one.
  """
  if not certificate.certified:
    return decoding.full_within_budget(policy)
  certified = decoding.with_setting(policy, certificate.setting)
  in_float = certificate.decoding.weights in (None, 'float')
  # In 8 bits the full model is another one, and this is what was certified.
  at_one = certificate.threshold == 1.0 and in_float
  if at_one and decoding.is_full_at_one(certified):
    return decoding.full_model(certified)
  return certified


def apply_certificate(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  context: records.DecodingContext,
  *,
  allow_uncertified: bool = False,
) -> decoding.ComputePolicy:
  """Returns the policy at the certified setting.

  Where nothing was certified that is the full model. It would exceed the
  policy's layer budget, if there is one: then no certificate holds, and what is
  decoded without is the full model as far as the budget goes.

  Args:
    certificate: what calibration wrote.
    policy: the policy it was made for, at any setting.
    context: of the decode; see `decoding_context`.
    allow_uncertified: go on where the guarantee does not hold. The caller then
      must not claim it; `certificate_differences` says whether it holds.

  Raises:
    ValueError: if the certificate was made for something else, naming what
      differs, unless `allow_uncertified`; and if the policy lacks a field that
      the certified setting sets.
  """
  policy, _, _ = use_certificate(
    certificate, policy, context, allow_uncertified=allow_uncertified
  )
  return policy


def use_certificate(
  certificate: Certificate | str | os.PathLike,
  policy: decoding.ComputePolicy,
  context: records.DecodingContext,
  *,
  allow_uncertified: bool = False,
) -> tuple[decoding.ComputePolicy, Certificate | None, records.Differences]:
  """Applies a certificate; returns the policy and what covers its outputs.

  Args:
    certificate: the certificate, or its path.
    policy: see `apply_certificate`.
    context: see `apply_certificate`.
    allow_uncertified: see `apply_certificate`.

  Returns:
    The policy at the certified setting; the certificate if it holds, else None;
    and the differences.

  Raises:
    FileNotFoundError, ValueError: if there is none, or it does not hold.
  """
  if not isinstance(certificate, Certificate):
    certificate = Certificate.load(certificate)
  found = certificate_differences(certificate, policy, context)
  if found.breaking and not allow_uncertified:
    raise ValueError(
      'the certificate does not hold for this '
      + '; '.join(found.breaking)
      + '. Calibrate again, or pass allow_uncertified=True to decode without '
      'a guarantee'
    )
  held = None if found.breaking else certificate
  return applied(certificate, policy), held, found


def check_covered(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  context: records.DecodingContext,
) -> tuple[str, ...]:
  """Checks that a policy as it stands is one that a certificate covers.

  Args:
    certificate: the certificate.
    policy: what is to decode, at the setting it has.
    context: of the decode, whatever it says of the policy.

  Returns:
    What differs without breaking the certificate.

  Raises:
    ValueError: naming what differs and breaks it.
  """
  made_in = _for_weights(certificate, certificate.decoding)
  made_in = made_in.at_output_length(context.max_length or made_in.max_length)
  found = made_in.differences(
    dataclasses.replace(context, policy=made_in.policy)
  )
  breaking = list(found.breaking)
  if not _is_covered(certificate, made_in, policy):
    breaking.append(
      f'policy: certified for {made_in.policy} at '
      f'{certificate.setting}, got {decoding.describe(policy, {})}'
    )
  if breaking:
    raise ValueError(
      f'the certificate does not hold for this {"; ".join(breaking)}. '
      'Calibrate again, or give certificate=None'
    )
  return found.told


def _for_weights(
  certificate: Certificate,
  made_in: records.DecodingContext,
) -> records.DecodingContext:
  """Returns a context as it is to be compared, with the weights expected.

  Where nothing was certified, what is decoded with is the full model, which is
  in float whatever the weights were that calibration tried.
  """
  if certificate.certified or made_in.weights is None:
    return made_in
  return dataclasses.replace(made_in, weights='float')


def _is_covered(
  certificate: Certificate,
  made_in: records.DecodingContext,
  policy: decoding.ComputePolicy,
) -> bool:
  """Whether a policy is the certified one, or the full model in its place."""
  in_float = made_in.weights in (None, 'float')
  if policy.verifies and in_float:
    # Its output is the full model's, which every certificate covers.
    return True
  as_it_is = decoding.describe(policy, {})
  full = decoding.describe(decoding.full_model(policy), {})
  if as_it_is == full and in_float:
    return True
  if not certificate.certified:
    return False
  setting = certificate.setting
  try:
    certified = decoding.with_setting(policy, setting)
    described = decoding.describe(policy, setting)
  except ValueError:
    # It has no such setting.
    return False
  return (
    described == made_in.policy and decoding.describe(certified, {}) == as_it_is
  )

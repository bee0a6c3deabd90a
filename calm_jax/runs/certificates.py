"""Certificates put to use: the only bridge from statistics to decoding.

A certificate holds for the parameters, tokenizer, policy and sampler that it
was made for. Here its threshold is put into a policy, and refused otherwise.
"""

import os
from collections.abc import Sequence
from typing import Any

from calm_jax import checkpoints, decoding
from calm_jax.array_types import Params
from calm_jax.calibration.certificate import Certificate
from calm_jax.exits import LayerBudget
from calm_jax.tokenizer import Tokenizer


def certificate_path(run_dir: str | os.PathLike) -> str:
  """Returns where the certificate of a run lies, if it has one."""
  return os.path.join(run_dir, 'calibration', 'certificate.json')


def certificate_context(
  policy: decoding.ComputePolicy,
  *,
  params: Params,
  tokenizer: Tokenizer,
  sampler: Any,
) -> dict[str, Any]:
  """Returns what ties a certificate to what it was made for.

  Args:
    policy: the policy; the value of its threshold does not matter.
    params: the parameter tree as loaded, not prepared for decoding.
    tokenizer: the tokenizer.
    sampler: the sampler.
  """
  return {
    'parameters': checkpoints.parameter_fingerprint(params),
    'tokenizer': tokenizer.fingerprint,
    'policy': decoding.describe(policy),
    'sampler': decoding.describe(sampler),
  }


def certificate_differences(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  *,
  params: Params,
  tokenizer: Tokenizer,
  sampler: Any = None,
  suppressed_tokens: Sequence[int] = (),
) -> list[str]:
  """Says what keeps a certificate from holding; nothing if it holds.

  The arguments are those of `apply_certificate`.
  """
  actual = certificate_context(
    policy,
    params=params,
    tokenizer=tokenizer,
    sampler=decoding.Greedy() if sampler is None else sampler,
  )
  differing = [
    f'{name}: certified for {certificate.context.get(name)!r}, got {value!r}'
    for name, value in actual.items()
    if certificate.context.get(name) != value
  ]
  has_budget = isinstance(policy.exit_rule, LayerBudget)
  if has_budget and _certified_threshold(certificate) is None:
    differing.append(
      'layer budget: no threshold was certified with it, and the full model, '
      'which is then used, would exceed it'
    )
  if suppressed_tokens:
    differing.append(
      f'suppressed_tokens: certified for none, got {list(suppressed_tokens)}'
    )
  return differing


def apply_certificate(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  *,
  params: Params,
  tokenizer: Tokenizer,
  sampler: Any = None,
  suppressed_tokens: Sequence[int] = (),
  allow_uncertified: bool = False,
) -> decoding.ComputePolicy:
  """Returns the policy at the certified threshold.

  Where nothing was certified that is the full model. It would exceed the
  policy's layer budget, if there is one: then no certificate holds, and what is
  decoded without is the full model as far as the budget goes.

  Args:
    certificate: what calibration wrote.
    policy: the policy it was made for, at any threshold.
    params: the parameter tree as loaded, not prepared for decoding.
    tokenizer: the tokenizer.
    sampler: the sampler; Greedy if None.
    suppressed_tokens: ids that are never said; calibration suppresses none.
    allow_uncertified: go on where the guarantee does not hold. The caller then
      must not claim it; `certificate_differences` says whether it holds.

  Raises:
    ValueError: if the certificate was made for something else, naming what
      differs, unless `allow_uncertified`.
  """
  differing = certificate_differences(
    certificate,
    policy,
    params=params,
    tokenizer=tokenizer,
    sampler=sampler,
    suppressed_tokens=suppressed_tokens,
  )
  if differing and not allow_uncertified:
    raise ValueError(
      'the certificate does not hold for this '
      + '; '.join(differing)
      + '. Calibrate again, or pass allow_uncertified=True to decode without '
      'a guarantee'
    )
  threshold = _certified_threshold(certificate)
  if threshold is None:
    return decoding.full_within_budget(policy)
  has_budget = isinstance(policy.exit_rule, LayerBudget)
  if threshold >= 1.0 and not has_budget:
    return decoding.full_model(policy)
  # With a budget, a threshold of 1 is not the full model.
  return decoding.with_threshold(policy, threshold)


def _certified_threshold(certificate: Certificate) -> float | None:
  """Returns the threshold of what was certified, None if there is none."""
  return certificate.threshold if certificate.certified else None


def use_certificate(
  certificate: Certificate | str | os.PathLike,
  policy: decoding.ComputePolicy,
  *,
  allow_uncertified: bool = False,
  **made_for: Any,
) -> tuple[decoding.ComputePolicy, Certificate | None]:
  """Applies a certificate; returns the policy and what covers its outputs.

  Args:
    certificate: the certificate, or its path.
    policy: the policy it was made for, at any threshold.
    allow_uncertified: see `apply_certificate`.
    **made_for: the others of its arguments.

  Returns:
    The policy at the certified threshold, and the certificate if it holds, else
    None.

  Raises:
    FileNotFoundError, ValueError: if there is none, or it does not hold.
  """
  if not isinstance(certificate, Certificate):
    certificate = Certificate.load(certificate)
  applied = apply_certificate(
    certificate, policy, allow_uncertified=allow_uncertified, **made_for
  )
  if certificate_differences(certificate, policy, **made_for):
    return applied, None
  return applied, certificate

"""What a decode depends on, written down: the key of everything promised."""

from typing import Any

from calm_jax import checkpoints, decoding, records
from calm_jax.array_types import Params
from calm_jax.interfaces import BoundDecoder
from calm_jax.records import provenance
from calm_jax.tokenizer import Tokenizer


def decoding_context(
  policy: decoding.ComputePolicy | None = None,
  *,
  tokenizer: Tokenizer | str,
  params: Params | None = None,
  parameters: str | None = None,
  sampler: Any = None,
  setting: Any = None,
  bound: BoundDecoder | None = None,
  **facts: Any,
) -> records.DecodingContext:
  """Returns the context of a decode.

  Args:
    policy: the policy, where it is to be written down; values of its setting do
      not matter.
    tokenizer: the tokenizer, or its fingerprint.
    params: the parameter tree as loaded, not prepared for decoding.
    parameters: instead of these, their fingerprint.
    sampler: the sampler; Greedy if None.
    setting: whose values are left out of the policy; the threshold if None.
    bound: what decodes, if that is known: dtype and depth loop are its.
    **facts: further fields of `records.DecodingContext`.
  """
  if params is not None:
    parameters = checkpoints.parameter_fingerprint(params)
  return records.DecodingContext(
    parameters=parameters,
    tokenizer=tokenizer
    if isinstance(tokenizer, str)
    else tokenizer.fingerprint,
    policy=None if policy is None else decoding.describe(policy, setting),
    sampler=decoding.describe(decoding.as_sampler(sampler)),
    **{**decoding.describe_computation(bound), **facts},
    versions=provenance.versions(*provenance.LIBRARIES),
  )

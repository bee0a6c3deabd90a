"""Certificates in T5X's jobs: a policy at the threshold that was certified.

T5X hands a model its parameters when everything is compiled, too late to look
at them. So they are looked at in the checkpoint that the job restores.
"""

import os
from typing import Any

from absl import logging

from calm_jax import checkpoints, data, decoding, runs
from calm_jax.calibration.certificate import Certificate
from calm_jax.interop import t5x_networks


def certified_policy(
  certificate: str | os.PathLike,
  policy: decoding.ComputePolicy,
  *,
  checkpoint: str | os.PathLike,
  network: Any,
  vocabulary: Any,
  sampler: decoding.Sampler | None = None,
  allow_uncertified: bool = False,
) -> decoding.ComputePolicy:
  """Returns the policy at the certified threshold.

  Args:
    certificate: the path of what `calm_jax.cli.calibrate` wrote.
    policy: the policy it was made for, at any threshold.
    checkpoint: what the job restores, in float32: bfloat16 makes other
      parameters of them.
    network: T5X's network.
    vocabulary: the seqio vocabulary.
    sampler: the sampler; Greedy if None.
    allow_uncertified: go on where the certificate does not hold.

  Raises:
    FileNotFoundError: if there is no certificate or no checkpoint.
    ValueError: if it was made for something else, naming what.
  """
  certificate = Certificate.load(certificate)
  if (length := certificate.decoding.max_length) is not None:
    policy = decoding.at_output_length(policy, length)
  policy, _, differences = runs.use_certificate(
    certificate,
    policy,
    runs.decoding_context(
      params=checkpoints.load(checkpoint).params,
      tokenizer=data.tokenizer_of(vocabulary),
      sampler=sampler,
      dtype=t5x_networks.config_of(network).dtype,
    ),
    allow_uncertified=allow_uncertified,
  )
  for line in differences.told:
    logging.info('certificate: %s', line)
  return policy

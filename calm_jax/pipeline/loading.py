"""A model from disk that turns texts into texts, in one call."""

import os
from typing import Any

from calm_jax import decoding, interfaces, runs
from calm_jax.calibration.certificate import Certificate
from calm_jax.pipeline.text_generator import TextGenerator


def load(
  path: str | os.PathLike,
  *,
  vocabulary: str | os.PathLike | runs.TextFeatures | None = None,
  policy: decoding.ComputePolicy | interfaces.ExitRule | None = None,
  certificate: Certificate | str | os.PathLike | None = 'own',
  **options: Any,
) -> TextGenerator:
  """Loads a run with its certificate, or any checkpoint with its vocabulary.

  Tokens leave early where a certificate says that they may; until something is
  certified, everything is decoded at full depth.

  Args:
    path: a run directory that `calm_jax.cli.train` wrote or one of its
      checkpoints; with `vocabulary`, whatever `checkpoints.load` reads: T5X's
      and Hugging Face's checkpoints.
    vocabulary: a SentencePiece model, or 'bytes', with T5's 100 extra ids;
      `runs.TextFeatures` where more is to be said. None for a run directory,
      which has its own.
    policy: what is computed for each token, or an exit rule alone; that of the
      certificate if None, and the full model where there is no certificate. A
      policy that is given without a certificate is used as it is, and its
      outputs are marked as not certified.
    certificate: 'own' for the one in the run directory, if there is one;
      'tuned' for what `calm_jax.cli.tune` chose there, its policy and depth
      loop included; a certificate or its path; None for none.
    **options: what else `TextGenerator.from_run` and `from_loaded` take:
      `sampler` (with the policy of a certificate, its own unless given),
      `allow_uncertified`, `suppressed_tokens`, `forced_prefix`, `weights`,
      `depth_loop`, `allow_nonfinite` and `max_length`; with `vocabulary` what
      `runs.TextFeatures` takes.

  Raises:
    FileNotFoundError: if a part is missing.
    ValueError: if parts do not go together, such as a certificate of other
      parameters, or a policy cannot be made again from its certificate.
  """
  path = os.path.expanduser(path)
  if certificate == 'own':
    certificate = runs.certificate_path(path)
    if not os.path.exists(certificate):
      certificate = None
  elif certificate == 'tuned':
    policy = runs.load_tuned_policy(path) if policy is None else policy
    certificate = runs.tuned_certificate(path)
    options.setdefault('depth_loop', runs.tuned_depth_loop(path))
  if certificate is not None and not isinstance(certificate, Certificate):
    certificate = Certificate.load(certificate)
  if certificate is not None and policy is None:
    policy = runs.policy_of(certificate, path)
    if options.get('sampler') is None:
      options['sampler'] = runs.sampler_of(certificate)
  return TextGenerator.from_run(
    path,
    policy=policy,
    certificate=certificate,
    vocabulary=vocabulary,
    **options,
  )

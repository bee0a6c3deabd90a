"""The policy that a certificate was made for, made again.

A certificate holds its policy as `decoding.describe` writes it down; here is
the way back. What is no number in it, the weights of a classifier, comes from
the run directory.
"""

import os
from collections.abc import Mapping
from typing import Any

from calm_jax import decoding, exits
from calm_jax.calibration.certificate import Certificate
from calm_jax.runs.loading import load_classifier


def policy_of(
  certificate: Certificate, run_dir: str | os.PathLike
) -> decoding.ComputePolicy:
  """Returns the policy that a certificate was made for, at its threshold.

  Whether the certificate holds is for `apply_certificate` to say.

  Args:
    certificate: the certificate. Where it certifies nothing the threshold is 1.
    run_dir: the run it was made for; its classifier is loaded where the policy
      has one.

  Raises:
    FileNotFoundError: if there is no such classifier.
    ValueError: if the policy cannot be made again from its description.
  """
  described = certificate.context.get('policy')
  if certificate.threshold is None or not isinstance(described, Mapping):
    raise ValueError(
      'the certificate does not say which policy and threshold it is of; give '
      'the policy'
    )
  maker = _Maker(run_dir, certificate.threshold)
  try:
    policy = maker.make(described)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(_refusal(described, run_dir, error)) from None
  if decoding.describe(policy) != described:
    raise ValueError(_refusal(described, run_dir, decoding.describe(policy)))
  return policy


def _refusal(described, run_dir, found) -> str:
  return (
    f'the certificate is of the policy {described}, which cannot be made again '
    f'from {os.fspath(run_dir)}; found {found}. Give the policy'
  )


class _Maker:
  """Makes what was described: the inverse of `decoding.describe`."""

  def __init__(self, run_dir: str | os.PathLike, threshold: float):
    self._run_dir = run_dir
    self._threshold = threshold

  def make(self, described: Any) -> Any:
    """Returns the object of a description, or the plain value itself."""
    if not isinstance(described, Mapping):
      if isinstance(described, str) and ' sha256 ' in described:
        raise TypeError(
          f'an array of which only the hash is stored: {described}'
        )
      return described
    name = described['type']
    if name == 'Classifier':
      return load_classifier(self._run_dir)
    kind = getattr(exits, name, None) or getattr(decoding, name)
    fields = {
      key: self.make(item) for key, item in described.items() if key != 'type'
    }
    # What `describe` leaves out: the setting.
    if fields.get('threshold', ...) is None:
      fields['threshold'] = self._threshold
    if hasattr(kind, 'at') and fields.get('value', ...) is None:
      fields['value'] = self._threshold
    return kind(**fields)

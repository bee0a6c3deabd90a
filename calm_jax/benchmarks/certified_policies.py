"""The policies of a run's certificates, each with a deferred fill as well."""

import dataclasses
from collections.abc import Sequence

from calm_jax import decoding, runs
from calm_jax.calibration.certificate import Certificate


def read_policies(
  run_dir: str, paths: Sequence[str]
) -> dict[str, tuple[float, decoding.ComputePolicy]]:
  """Returns name -> threshold and policy of certificates, deferred as well.

  Certificates of one policy for several tolerances are told apart by their
  thresholds.

  Args:
    run_dir: the run; its classifier is loaded where a certificate is of one.
    paths: certificates of the run.

  Raises:
    ValueError: if a certificate is of something that cannot be made again from
      its description, or certifies nothing.
  """
  made = {}
  for path in paths:
    certificate = Certificate.load(path)
    if not certificate.certified:
      raise ValueError(f'{path} certifies nothing; leave it out')
    policy = runs.policy_of(certificate, run_dir)
    described = certificate.context['policy']
    rule = described['exit_rule']
    names = [rule.get('rule', rule)['measure']['type']]
    if 'rule' in rule:
      names.append(rule['type'])
    if described['readout']['type'] != 'FullVocabulary':
      names.append(described['readout']['type'])
    name = ', '.join(names)
    if name in made:  # the same policy, certified for something else
      name = f'{name} at {certificate.threshold:g}'
    made[name] = certificate.threshold, policy
    deferred = dataclasses.replace(
      policy, cache_fill=decoding.DeferredExitState()
    )
    made[f'{name}, deferred fill'] = certificate.threshold, deferred
  return made

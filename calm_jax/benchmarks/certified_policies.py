"""The policies of a run's certificates, and those that say the same."""

import dataclasses
from collections.abc import Sequence

from calm_jax import decoding, records, runs
from calm_jax.calibration.certificate import Certificate

_FILLS = {
  decoding.CatchUp: 'exact K/V',
  decoding.DeferredExitState: 'deferred fill',
}


def read_policies(
  run_dir: str, paths: Sequence[str]
) -> dict[str, tuple[Certificate, decoding.ComputePolicy]]:
  """Returns name -> certificate and its policy.

  One that projects exit states stands with a deferred fill as well, which says
  the same; with exact K/V nothing is projected.
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
    inner = rule.get('rule', rule)
    names = [inner.get('measure', inner)['type']]
    if 'rule' in rule:
      names.append(rule['type'])
    if described['readout']['type'] != 'FullVocabulary':
      names.append(described['readout']['type'])
    projects = isinstance(policy.cache_fill, decoding.ProjectExitState)
    if not projects:
      fill = type(policy.cache_fill)
      names.append(_FILLS.get(fill, fill.__name__))
    if runs.weights_of(certificate) is not None:
      names.append('in 8 bits')
    name = ', '.join(names)
    if name in made:  # the same policy, certified for something else
      setting = records.setting_in_words(certificate.setting)
      name = f'{name} at {setting.removeprefix("threshold ")}'
    made[name] = certificate, policy
    if not projects:
      continue
    deferred = dataclasses.replace(
      policy, cache_fill=decoding.DeferredExitState()
    )
    made[f'{name}, deferred fill'] = certificate, deferred
  return made

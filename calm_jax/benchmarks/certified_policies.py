"""The policies that a run's certificates were made for, made again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import decoding, exits
from calm_jax.calibration.certificate import Certificate
from calm_jax.checkpoints import classifiers


def read_policies(
  run_dir: str, paths: Sequence[str]
) -> dict[str, tuple[Certificate, decoding.ComputePolicy]]:
  """Returns name -> certificate and its policy, with the deferred fill as well.

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
    described = certificate.context['policy']
    policy = _policy(described, run_dir, certificate.threshold)
    if decoding.describe(policy) != described:
      raise ValueError(
        f'{path} is of the policy {described}, which cannot be made again '
        f'from {run_dir}; found {decoding.describe(policy)}'
      )
    rule = described['exit_rule']
    names = [rule.get('rule', rule)['measure']['type']]
    if 'rule' in rule:
      names.append(rule['type'])
    if described['readout']['type'] != 'FullVocabulary':
      names.append(described['readout']['type'])
    name = ', '.join(names)
    if name in made:  # the same policy, certified for something else
      name = f'{name} at {certificate.threshold:g}'
    made[name] = certificate, policy
    deferred = dataclasses.replace(
      policy, cache_fill=decoding.DeferredExitState()
    )
    made[f'{name}, deferred fill'] = certificate, deferred
  return made


def _policy(described, run_dir: str, threshold: float):
  """Makes a policy from its description at the certified threshold."""
  return decoding.ComputePolicy(
    cache_fill=_make(decoding, described['cache_fill']),
    readout=_make(decoding, described['readout']),
    exit_rule=_rule(described['exit_rule'], run_dir, threshold),
  )


def _rule(described, run_dir: str, threshold: float):
  """Makes a rule, and the budget around it if there is one."""
  if described['type'] == 'LayerBudget':
    rule = _rule(described['rule'], run_dir, threshold)
    return _make(exits, {**described, 'rule': rule})
  if described['measure']['type'] == 'Classifier':
    measure = exits.Classifier(**classifiers.load_classifier(run_dir))
  else:
    measure = _make(exits, described['measure'])
  schedule = {**described['threshold'], 'value': threshold}
  return exits.ConfidenceExit(
    measure,
    _make(exits, schedule),
    minimum_exit_layer=described['minimum_exit_layer'],
    interval=described['interval'],
  )


def _make(module, described: Mapping[str, Any]):
  """Returns the object of a description whose fields are plain numbers."""
  fields = {key: item for key, item in described.items() if key != 'type'}
  return getattr(module, described['type'])(**fields)

"""The policies of a run's certificates, and those that say the same."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import decoding, exits, records, runs
from calm_jax.calibration.certificate import Certificate

_FILLS = {
  decoding.CatchUp: 'exact K/V',
  decoding.DeferredExitState: 'deferred fill',
}
# Slots that hold them are not named.
_NULL_OBJECTS = {'EveryLayer', 'WholeSource', 'WholeEncoder', 'FullVocabulary'}


def read_policies(
  run_dir: str, paths: Sequence[str]
) -> dict[str, tuple[Certificate, decoding.ComputePolicy]]:
  """Returns name -> certificate and its policy.

  One that projects exit states stands with a deferred fill as well, which says
  the same; with exact K/V nothing is projected, nor where no token exits.
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
    name = ', '.join(_names(certificate.context['policy'], policy))
    if runs.weights_of(certificate) is not None:
      name = f'{name}, in 8 bits'
    if name in made:  # the same policy, certified for something else
      name = f'{name}{at_setting(certificate)}'
    made[name] = certificate, policy
    projects = isinstance(policy.cache_fill, decoding.ProjectExitState)
    if not projects or isinstance(policy.exit_rule, exits.NeverExit):
      continue
    deferred = dataclasses.replace(
      policy, cache_fill=decoding.DeferredExitState()
    )
    made[f'{name}, deferred fill'] = certificate, deferred
  return made


def at_setting(certificate: Certificate) -> str:
  """Returns the certified setting as the end of a name, '' where none is set.

  A threshold by its number alone, of other fields the last parts of their
  paths: ' at 0.6', ' at num_layers 5'.
  """
  setting = certificate.setting
  if setting == {}:
    return ''
  if isinstance(setting, Mapping):
    setting = {path.rpartition('.')[2]: setting[path] for path in setting}
  words = records.setting_in_words(setting)
  return f' at {words.removeprefix("threshold ")}'


def _names(
  described: Mapping[str, Any], policy: decoding.ComputePolicy
) -> list[str]:
  """Returns the names of what a policy has in its slots."""
  rule = described['exit_rule']
  inner = rule.get('rule', rule)
  names = [inner.get('measure', inner)['type']]
  if 'rule' in rule:
    names.append(rule['type'])
  for slot in ('layer_plan', 'source_plan', 'encoder_exit', 'readout'):
    name = type(getattr(policy, slot)).__name__
    if name not in _NULL_OBJECTS:
      names.append(name)
  fill = type(policy.cache_fill)
  if fill is not decoding.ProjectExitState:
    names.append(_FILLS.get(fill, fill.__name__))
  if names[0] == 'NeverExit' and len(names) > 1:
    # What it has instead says more.
    names = names[1:]
  return names

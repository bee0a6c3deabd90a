"""The policy that a certificate was made for, made again.

A certificate holds its policy as `decoding.describe` writes it down; here is
the way back. What is no number in it, the weights of a classifier, a gate or
exit adapters, comes from the run directory.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import decoding, encoding, exits
from calm_jax.calibration.certificate import Certificate
from calm_jax.checkpoints import trained_parts
from calm_jax.context_gates import ContextGates
from calm_jax.draft_heads import DraftHead
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.exit_layers import adapters_of
from calm_jax.runs.encoder_classifiers import label_words
from calm_jax.runs.int8_parameters import load_first_layers
from calm_jax.runs.loading import load_run
from calm_jax.small_twins import SmallTwins
from calm_jax.source_scorer import SourceScorer
from calm_jax.token_router import TokenRouter

# Parts that are trained, by the type of what a folder of a run directory holds.
_TRAINED = {
  'Classifier': (exits.Classifier, trained_parts.CLASSIFIER),
  'ContextGates': (ContextGates, trained_parts.CONTEXT_GATES),
  'DraftHead': (DraftHead, trained_parts.DRAFT_HEAD),
  'EncoderHeads': (EncoderHeads, trained_parts.ENCODER_HEADS),
  'ExitAdapters': (adapters_of, trained_parts.EXIT_ADAPTERS),
  'ExitLayers': (adapters_of, trained_parts.EXIT_ADAPTERS),
  'Gate': (exits.Gate, trained_parts.GATE),
  'Router': (exits.Router, trained_parts.ROUTER),
  'SmallTwins': (SmallTwins, trained_parts.SMALL_TWINS),
  'SourceScorer': (SourceScorer, trained_parts.SOURCE_SCORER),
  'TokenRouter': (TokenRouter, trained_parts.TWIN_ROUTER),
}


def policy_of(
  certificate: Certificate, run_dir: str | os.PathLike
) -> decoding.ComputePolicy:
  """Returns the policy that a certificate was made for, at its setting.

  Whether the certificate holds is for `apply_certificate` to say.

  Args:
    certificate: the certificate. Where it certifies nothing, the setting is the
      most conservative one that it tested.
    run_dir: the run it was made for; the trained part of the policy, such as a
      gate, is found in it whatever its folder is called.

  Raises:
    FileNotFoundError: if there is no such part.
    ValueError: if the policy cannot be made again from its description.
  """
  described = certificate.decoding.policy
  if not isinstance(described, Mapping):
    raise ValueError(
      'the certificate does not say which policy it is of; give the policy'
    )
  setting = certificate.settings[0]
  if certificate.certified:
    setting = certificate.setting
  try:
    policy = _Maker(run_dir).make(_filled(described, setting))
    found = decoding.describe(policy, setting)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(_refusal(described, run_dir, error)) from None
  if found != described:
    raise ValueError(_refusal(described, run_dir, found))
  return policy


def policy_described(
  described: Mapping[str, Any], run_dir: str | os.PathLike
) -> decoding.ComputePolicy:
  """Returns the policy that was written down whole, made again.

  Args:
    described: what `decoding.describe(policy, {})` returned.
    run_dir: the run whose trained parts the policy has, as for `policy_of`.

  Raises:
    FileNotFoundError, ValueError: as `policy_of`.
  """
  try:
    policy = _Maker(run_dir).make(described)
    found = decoding.describe(policy, {})
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(_refusal(described, run_dir, error)) from None
  if found != described:
    raise ValueError(_refusal(described, run_dir, found))
  return policy


def sampler_of(certificate: Certificate) -> decoding.Sampler:
  """Returns the sampler that a certificate was made for; Greedy if unsaid.

  Raises:
    ValueError: if it cannot be made again from its description.
  """
  described = certificate.decoding.sampler
  if described is None:
    return decoding.Greedy()
  try:
    sampler = _Maker(None).make(described)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(_refusal(described, 'this', error)) from None
  if decoding.describe(sampler) != described:
    raise ValueError(_refusal(described, 'this', decoding.describe(sampler)))
  return sampler


def _filled(described: Any, setting: Any) -> Any:
  """Returns a description with the values of a setting, which it leaves out."""
  if not isinstance(setting, Mapping):
    setting = {'threshold': setting}
  for path, value in setting.items():
    if path == 'threshold':
      path = _threshold_path(described)
    described = _put(described, path.split('.'), value)
  return described


def _threshold_path(described: Mapping[str, Any]) -> str:
  """Returns where the threshold is, which the description leaves out."""
  rule, path = described['exit_rule'], 'exit_rule'
  while 'threshold' not in rule:
    if 'rule' not in rule:
      # Nothing exits: the threshold is the layer plan's, or the encoder's.
      by_plan = 'threshold' in described['layer_plan']
      slot = 'layer_plan' if by_plan else 'encoder_exit'
      if by_plan or slot not in described or path.startswith(slot):
        rule, path = described['layer_plan'], 'layer_plan'
        break
      rule, path = described[slot], slot
      continue
    rule, path = rule['rule'], f'{path}.rule'
  path = f'{path}.threshold'
  return path if rule['threshold'] is None else f'{path}.value'


def _put(described: Any, names: Sequence[str], value: Any) -> dict[str, Any]:
  """Returns a description with another value at the end of a path."""
  name, *rest = names
  if name not in described:
    raise KeyError(f'{name}: {described["type"]} has no such field')
  if rest:
    value = _put(described[name], rest, value)
  return {**described, name: value}


def _refusal(described, run_dir, found) -> str:
  return (
    f'what was written down is the policy {described}, which cannot be made '
    f'again from {os.fspath(run_dir)}; found {found}. Give the policy'
  )


class _Maker:
  """Makes what was described: the inverse of `decoding.describe`."""

  def __init__(self, run_dir: str | os.PathLike | None):
    self._run_dir = run_dir

  def make(self, described: Any) -> Any:
    """Returns the object of a description, or the plain value itself."""
    if not isinstance(described, Mapping):
      if isinstance(described, str) and ' sha256 ' in described:
        raise TypeError(f'only the hash of the array {described}')
      if described in ('inf', '-inf'):
        return float(described)
      # A tuple is written as a list.
      return tuple(described) if isinstance(described, list) else described
    name = described['type']
    if name == 'FirstLayers' and self._run_dir is not None:
      layers, weights = described['layers'], described['weights']
      return load_first_layers(self._run_dir, layers=layers, weights=weights)
    if name == 'LabelWords' and self._run_dir is not None:
      return label_words(load_run(self._run_dir), described['tokens'])
    if name in _TRAINED and self._run_dir is not None:
      return _load_trained(described, self._run_dir)
    homes = (home for home in (exits, encoding) if hasattr(home, name))
    kind = getattr(next(homes, decoding), name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
      raise TypeError(f'{name} is no part of a policy')
    return kind(
      **{
        key: self.make(item) for key, item in described.items() if key != 'type'
      }
    )


def _load_trained(
  described: Mapping[str, Any], run_dir: str | os.PathLike
) -> Any:
  """Returns the part of a run that was described, found by its weights.

  Raises:
    FileNotFoundError: if the run has no such part.
    ValueError: if the one of the default name is of other parameters.
  """
  make, part = _TRAINED[described['type']]

  def load(folder=None):
    return make(**trained_parts.load_part(part, run_dir, folder))

  refused = None
  for folder in trained_parts.part_folders(run_dir):
    try:
      found = load(folder)
    except ValueError as error:  # of another kind, or for other parameters
      refused = error
      continue
    if decoding.describe(found) == described:
      return found
  try:
    # The one that says what is wrong: missing, or not the one described.
    return load()
  except FileNotFoundError as missing:
    if refused is None:
      raise
    raise FileNotFoundError(f'{missing}; and {refused}') from None

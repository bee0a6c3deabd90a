"""A policy as a value: the setting one calibrates, and all that surrounds it.

A setting is a number, the threshold of the exit rule, or {path of a field in
the policy: its value}, such as {'exit_rule.threshold': 0.8,
'readout.num_blocks': 32}. `with_setting` puts it in; `describe` writes down
everything else, so that a certificate can say which policy it was made for.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from calm_jax.decoding.encoder_exits import WholeEncoder
from calm_jax.decoding.layer_plans import EveryLayer
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.source_plans import WholeSource
from calm_jax.decoding.verification import NeverVerify
from calm_jax.exits import LayerBudget, NeverExit
from calm_jax.interfaces import BoundDecoder, ExitRule
from calm_jax.quantisation import describe_weights

# What a setting that is a number stands for, as a path.
THRESHOLD = 'threshold'


# Null objects of slots that policies were once written down without.
_LATER_SLOTS = (NeverVerify, WholeSource, WholeEncoder)


def with_setting(policy: ComputePolicy, setting: Any) -> ComputePolicy:
  """Returns the policy with other values of the fields that a setting names.

  At threshold 1.0 an exit rule looks where it did and never fires.

  Args:
    policy: a policy; for a number its exit rule has a threshold, or is a budget
      around such a rule, which stays.
    setting: the threshold in [0, 1], or {path: value}, where a path leads from
      the policy through its fields, 'readout.num_blocks'; 'threshold' alone
      stands for the path of the threshold.

  Raises:
    ValueError: if a path leads nowhere, naming what there is.
  """
  return _replaced(policy, _by_path(policy, setting), '')


def setting_paths(policy: ComputePolicy, setting: Any) -> tuple[str, ...]:
  """Returns the paths of the fields that a setting sets, sorted.

  Raises:
    ValueError: as `with_setting`.
  """
  with_setting(policy, setting)
  return tuple(sorted(_by_path(policy, setting)))


def threshold_path(policy: ComputePolicy) -> str | None:
  """Returns where the number of the policy's threshold is; None if nowhere.

  The exit rule's; where no token exits that of a layer plan, or of the rule by
  which sources leave the encoder.

  >>> from calm_jax import exits
  >>> rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.9)
  >>> threshold_path(ComputePolicy(exit_rule=rule))
  'exit_rule.threshold'
  """
  rule, path = _within_budgets(policy.exit_rule, 'exit_rule')
  if isinstance(rule, NeverExit):
    if hasattr(policy.layer_plan, 'threshold'):
      return 'layer_plan.threshold'
    stops = getattr(policy.encoder_exit, 'rule', None)
    rule, path = _within_budgets(stops, 'encoder_exit.rule')
  if not hasattr(rule, 'threshold'):
    return None
  path = f'{path}.threshold'
  return f'{path}.value' if hasattr(rule.threshold, 'value') else path


def _within_budgets(rule: Any, path: str) -> tuple[Any, str]:
  """Returns the rule that budgets are around, and its path."""
  while isinstance(rule, LayerBudget):
    rule, path = rule.rule, f'{path}.rule'
  return rule, path


def rule_of_threshold(policy: ComputePolicy) -> ExitRule:
  """Returns the exit rule that a setting that is a number is about.

  That is the one of tokens; where none exits, of sources in the encoder.
  """
  path = threshold_path(policy) or ''
  if path.startswith('encoder_exit'):
    stops: Any = policy.encoder_exit
    return stops.rule
  return policy.exit_rule


def threshold_of(policy: ComputePolicy) -> Any:
  """Returns the number, or numbers, at `threshold_path`; None if nowhere."""
  path = threshold_path(policy)
  if path is None:
    return None
  value: Any = policy
  for name in path.split('.'):
    value = getattr(value, name)
  return value


def _by_path(policy: ComputePolicy, setting: Any) -> dict[str, Any]:
  """Returns a setting as {path: value}, without abbreviation."""
  if not isinstance(setting, Mapping):
    setting = {THRESHOLD: setting}
  found: dict[str, Any] = {}
  for path, value in setting.items():
    if path == THRESHOLD:
      path = threshold_path(policy)
    if path is None:
      rule, _ = _within_budgets(policy.exit_rule, '')
      raise ValueError(
        f'{type(rule).__name__} has no threshold to set; use an exit rule such '
        'as ConfidenceExit'
      )
    for other in found:
      if f'{path}.'.startswith(f'{other}.') or f'{other}.'.startswith(
        f'{path}.'
      ):
        raise ValueError(f'setting {dict(setting)} sets {path} twice')
    found[path] = value
  return found


def _replaced(parent: Any, values: Mapping[str, Any], above: str) -> Any:
  """Returns a dataclass with other values at the ends of paths.

  All at once: fields of one object may only make sense together.

  Args:
    parent: a part of a policy.
    values: {path: value}, from `parent` on.
    above: the path that led to it, with a dot at its end.
  """
  fields = {field.name for field in dataclasses.fields(parent)}
  of_fields: dict[str, dict[str, Any]] = {}
  for path, value in values.items():
    name, dot, rest = path.partition('.')
    if name not in fields:
      raise ValueError(
        f'setting {above + path!r}: {type(parent).__name__} has no field '
        f'{name!r}; it has {", ".join(sorted(fields)) or "none"}'
      )
    of_fields.setdefault(name, {})[rest or dot] = value
  return dataclasses.replace(
    parent,
    **{
      name: _field(parent, name, of_field, above)
      for name, of_field in of_fields.items()
    },
  )


def _field(
  parent: Any, name: str, values: Mapping[str, Any], above: str
) -> Any:
  """Returns a field of `parent` with other values at the ends of paths."""
  child, here = getattr(parent, name), f'{above}{name}'
  inside = dataclasses.is_dataclass(child)
  # Paths do not go on from one another's ends (`_by_path`).
  if '' in values:
    if inside:
      below = [field.name for field in dataclasses.fields(child)]
      raise ValueError(
        f'setting {here!r} is a whole {type(child).__name__}, not a number of '
        f'it; name one of its fields: {", ".join(below) or "it has none"}'
      )
    return values['']
  if not inside:
    path = f'{here}.{next(iter(values))}'
    raise ValueError(
      f'setting {path!r}: {name} of {type(parent).__name__} is {child!r}, and '
      'has no fields'
    )
  return _replaced(child, values, f'{here}.')


def full_model(policy: ComputePolicy) -> ComputePolicy:
  """Returns the full model as the policy decodes it: every layer, every token.

  Its exit rule never looks and has no budget, no layer is skipped, tokens come
  from all of the vocabulary, and all of the source is read, of all encoder
  layers. What losses are
  measured against; `full_within_budget` is what to decode with.
  """
  return dataclasses.replace(
    policy,
    exit_rule=NeverExit(),
    layer_plan=EveryLayer(),
    readout=policy.readout.over_all(),
    verification=NeverVerify(),
    source_plan=WholeSource(),
    encoder_exit=WholeEncoder(),
  )


def is_full_at_one(policy: ComputePolicy) -> bool:
  """Whether the policy at threshold 1.0 says what the full model says.

  Not with a layer budget, which may stop a token all the same, nor with a plan
  that skips layers or source positions, a readout that chooses tokens among a
  part of V, or an encoder that stops by another threshold.
  """
  if not policy.source_plan.whole:
    return False
  if policy.verifies:
    return True
  if not getattr(policy.readout, 'chooses_from_all', False):
    return False
  if not isinstance(policy.layer_plan, EveryLayer):
    by_plan = threshold_path(policy) == 'layer_plan.threshold'
    # Not within a budget, through which `threshold_path` looks.
    alone = isinstance(policy.exit_rule, NeverExit)
    return by_plan and alone and policy.encoder_exit.whole
  rule: Any = policy.exit_rule
  if not policy.encoder_exit.whole:
    if not isinstance(rule, NeverExit):
      return False
    rule = getattr(policy.encoder_exit, 'rule', None)
  elif isinstance(rule, NeverExit):
    return True
  return threshold_path(policy) is not None and not isinstance(
    rule, LayerBudget
  )


def full_within_budget(policy: ComputePolicy) -> ComputePolicy:
  """Returns the full model, as far as the policy's budget lets it be one."""
  full, rule = full_model(policy), policy.exit_rule
  if isinstance(rule, LayerBudget):
    rule = dataclasses.replace(rule, rule=NeverExit())
    full = dataclasses.replace(full, exit_rule=rule)
  stops: Any = policy.encoder_exit
  rule = getattr(stops, 'rule', None)
  if isinstance(rule, LayerBudget):
    rule = dataclasses.replace(rule, rule=NeverExit())
    stops = dataclasses.replace(stops, rule=rule)
    full = dataclasses.replace(full, encoder_exit=stops)
  return full


def describe_computation(bound: BoundDecoder | None = None) -> dict[str, Any]:
  """Returns what numbers depend on besides parameters and policy.

  Args:
    bound: the decoder, whose dtype, weights and depth loop are told; without
      it, what is true of this process.
  """
  config: Any = jax.config
  described = {
    'backend': jax.default_backend(),
    'matmul_precision': str(config.jax_default_matmul_precision or ''),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }
  if bound is not None:
    described['dtype'] = np.dtype(bound.decoder.dtype).name
    described['weights'] = describe_weights(bound.weights)
    described['depth_loop'] = type(bound.depth_loop).__name__
  return described


def describe(policy_or_sampler: Any, setting: Any = None) -> Any:
  """Returns names and numbers of a policy or sampler as plain JSON values.

  Arrays stand as their SHA-256, so that other classifier weights make another
  policy.

  Args:
    policy_or_sampler: what to describe.
    setting: of a policy, stands as None where its values would be; the
      threshold if None, where there is one. {} leaves nothing out.

  Raises:
    ValueError: for a setting that is not one of the policy.
  """
  left_out: tuple[str, ...] = ()
  if isinstance(policy_or_sampler, ComputePolicy):
    path = threshold_path(policy_or_sampler)
    if setting is not None:
      left_out = setting_paths(policy_or_sampler, setting)
    elif path is not None:
      left_out = (path,)
  return _described(policy_or_sampler, '', frozenset(left_out))


def _described(value: Any, path: str, left_out: frozenset[str]) -> Any:
  """Returns what `describe` says of a part of a policy, found at a path."""
  if path in left_out:
    return None
  if not dataclasses.is_dataclass(value):
    if isinstance(value, tuple):
      return list(value)
    if value is None or isinstance(value, (bool, int, float, str)):
      return _in_json(value)
    array = np.asarray(value)
    if array.ndim == 0:
      return _in_json(array.item())
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f'{array.dtype}{list(array.shape)} sha256 {digest[:16]}'
  describe_itself = getattr(value, 'describe', None)
  if describe_itself is not None:
    return describe_itself()
  described: dict[str, Any] = {'type': type(value).__name__}
  for field in dataclasses.fields(value):
    if isinstance(getattr(value, field.name), _LATER_SLOTS):
      continue
    below = f'{path}.{field.name}' if path else field.name
    described[field.name] = _described(
      getattr(value, field.name), below, left_out
    )
  return described


def _in_json(value: Any) -> Any:
  """Returns a value of JSON; infinity, which is none, by its name."""
  infinite = isinstance(value, float) and math.isinf(value)
  return str(value) if infinite else value

"""A policy as a value: the setting one calibrates, and all that surrounds it.

Calibration sweeps one number, the threshold of the exit rule; the rest of the
policy stays. `with_threshold` puts a setting in, `describe` writes down
everything but that number, so that a certificate can say which policy it was
made for.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from calm_jax.decoding.policy import ComputePolicy
from calm_jax.exits import LayerBudget, NeverExit


def with_threshold(policy: ComputePolicy, threshold: float) -> ComputePolicy:
  """Returns the policy with another threshold.

  At 1.0 the rule looks where it did and never fires.

  Args:
    policy: its exit rule has a `threshold` (a number, or an object with a
      `value`), or is a budget around such a rule, which stays.
    threshold: in [0, 1].

  Raises:
    ValueError: if the exit rule has no threshold.
  """
  rule = _rule_with_threshold(policy.exit_rule, threshold)
  return dataclasses.replace(policy, exit_rule=rule)


def _rule_with_threshold(rule: Any, threshold: float) -> Any:
  """Returns the exit rule with another threshold; see `with_threshold`."""
  if isinstance(rule, LayerBudget):
    inner = _rule_with_threshold(rule.rule, threshold)
    return dataclasses.replace(rule, rule=inner)
  if not hasattr(rule, 'threshold'):
    raise ValueError(
      f'{type(rule).__name__} has no threshold to set; use an exit rule such '
      'as ConfidenceExit'
    )
  schedule = rule.threshold
  if hasattr(schedule, 'value'):
    threshold = dataclasses.replace(schedule, value=threshold)
  return dataclasses.replace(rule, threshold=threshold)


def full_model(policy: ComputePolicy) -> ComputePolicy:
  """Returns the policy with an exit rule that never looks, nor has a budget.

  What losses are measured against; `full_within_budget` is what to decode with.
  """
  return dataclasses.replace(policy, exit_rule=NeverExit())


def full_within_budget(policy: ComputePolicy) -> ComputePolicy:
  """Returns the full model, as far as the policy's budget lets it be one."""
  rule = policy.exit_rule
  if not isinstance(rule, LayerBudget):
    return full_model(policy)
  rule = dataclasses.replace(rule, rule=NeverExit())
  return dataclasses.replace(policy, exit_rule=rule)


def describe(policy_or_sampler: Any) -> Any:
  """Returns names and numbers of a policy or sampler as plain JSON values.

  The threshold's value is left out: it is the setting. Arrays stand as their
  SHA-256, so that other classifier weights make another policy.
  """
  value = policy_or_sampler
  if not dataclasses.is_dataclass(value):
    if value is None or isinstance(value, (bool, int, float, str)):
      return value
    array = np.asarray(value)
    if array.ndim == 0:
      return array.item()
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f'{array.dtype}{list(array.shape)} sha256 {digest[:16]}'
  described: dict[str, Any] = {'type': type(value).__name__}
  for field in dataclasses.fields(value):
    item = getattr(value, field.name)
    if field.name == 'threshold' and not hasattr(item, 'value'):
      item = None
    is_setting = field.name == 'value' and hasattr(value, 'at')
    described[field.name] = None if is_setting else describe(item)
  return described

"""The adaptive systems that can be built for a run.

A system whose part was not trained is left out, in words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax import decoding
from calm_jax.benchmarks.adaptive_settings import SYSTEMS, Model, Setting


def systems_of(
  about: Model, names: Sequence[str] = (), *, most: int | None = None
) -> tuple[dict[str, list[Setting]], list[str]]:
  """Returns name -> settings of every system, conservative first.

  Args:
    about: the model.
    names: those of `SYSTEMS` that are wanted; () for all.
    most: so many settings of a system at most, evenly chosen; None for all.

  Returns:
    The systems, and a line for each one that was left out, with the reason.

  Raises:
    ValueError: for a name that there is not.
  """
  for name in names:
    if name not in SYSTEMS:
      raise ValueError(
        f'there is no system {name!r}; there are {"; ".join(SYSTEMS)}'
      )
  found, left_out = {}, []
  for name in names or SYSTEMS:
    try:
      settings = list(SYSTEMS[name](about))
    except FileNotFoundError as error:
      left_out.append(f'{name} is left out: {error}')
      continue
    if not settings:
      left_out.append(
        f'{name} is left out: a decoder of {about.num_layers} layers has no '
        'setting of it'
      )
      continue
    for one in settings:
      one.policy.check_composition()
    number = min(len(settings), most or len(settings))
    places = np.linspace(0, len(settings) - 1, number).round().astype(int)
    found[name] = [settings[place] for place in places]
  return found, left_out


def family_of(policy: decoding.ComputePolicy) -> tuple[str, ...]:
  """Returns the types of the slots, by which settings of a system are alike."""
  rule: Any = policy.exit_rule
  slots = (
    policy.layer_plan,
    policy.cache_fill,
    policy.readout,
    rule,
    getattr(rule, 'measure', None),
    policy.verification,
    policy.source_plan,
    policy.encoder_exit,
  )
  return tuple(type(slot).__name__ for slot in slots)

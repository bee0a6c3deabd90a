"""A space of candidates: policies with the settings to try, and their order."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from calm_jax import (
  calibration,
  decoding,
  exits,
  interfaces,
  quantisation,
  records,
)

# What results call the model that all are held against.
FULL_MODEL = 'full model'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way of decoding that may be chosen.

  Attributes:
    name: of its policy in the space.
    setting: a threshold, or {path of a field of the policy: value}; {} for the
      policy as it stands.
    policy: the policy, at the setting.
    weights: which matrices are in 8 bits; None for none.
    place: of its setting among those of its policy, from 0.
  """

  name: str
  setting: float | dict[str, Any]
  policy: decoding.ComputePolicy
  weights: quantisation.Int8Weights | None = None
  place: int = 0

  @property
  def lossless(self) -> bool:
    """Whether its outputs are the full model's, so that nothing is tested."""
    return self.policy.verifies and self.weights is None

  @property
  def label(self) -> str:
    """Its policy and setting in words."""
    if self.setting == {}:
      return self.name
    return f'{self.name}, {records.setting_in_words(self.setting)}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
  """One policy of a space, with the settings that are tried.

  Attributes:
    name: what results call it; no other of the space has it.
    policy: the policy, or an exit rule alone; what settings set does not
      matter.
    settings: as for `CalibrationPlan`; () for the policy as it stands. Of
      drafts that are checked, how bold they are: none of it changes an output.
    weights: which matrices are in 8 bits, as `decoding.bind` takes it.
  """

  name: str
  policy: decoding.ComputePolicy | interfaces.ExitRule
  settings: Sequence[float | dict[str, Any]] | None = None
  weights: quantisation.Int8Weights | str | None = None

  def __post_init__(self):
    """Raises ValueError for a name, settings or weights that are none."""
    if not isinstance(self.name, str) or not self.name.strip():
      raise ValueError(
        f'a policy of the space has the name {self.name!r}; give it one'
      )
    policy = decoding.as_policy(self.policy)
    settings = exits.usual_thresholds(decoding.rule_of_threshold(policy))
    if self.settings is not None:
      settings = tuple(self.settings) or ({},)
    try:
      settings = tuple(calibration.check_settings(settings))
      for setting in settings:
        decoding.with_setting(policy, setting)
      policy.check_composition()
      weights = quantisation.as_weights(self.weights)
    except ValueError as error:
      raise ValueError(f'policy {self.name!r} of the space: {error}') from None
    for name, value in (
      ('policy', policy),
      ('settings', settings),
      ('weights', weights),
    ):
      object.__setattr__(self, name, value)

  def at(self, max_length: int) -> list[Candidate]:
    """Returns its candidates for outputs of at most T tokens, coarse first.

    Settings between those before are filled in as it goes on, so that whoever
    stops early has looked everywhere.
    """
    policy = decoding.at_output_length(
      decoding.as_policy(self.policy), max_length
    )
    settings = tuple(self.settings or ())
    return [
      Candidate(
        self.name,
        settings[place],
        decoding.with_setting(policy, settings[place]),
        quantisation.as_weights(self.weights),
        place,
      )
      for place in coarse_first(len(settings))
    ]


def as_space(given: Sequence[Candidates]) -> tuple[Candidates, ...]:
  """Returns a space, checked.

  Raises:
    TypeError: for what is no list of `Candidates`.
    ValueError: if it is empty or two policies have one name.
  """
  if isinstance(given, Candidates):
    given = [given]
  if not isinstance(given, Sequence) or any(
    not isinstance(one, Candidates) for one in given
  ):
    raise TypeError(
      f'a space is a list of evaluation.Candidates, not {given!r:.200}'
    )
  if not given:
    raise ValueError(
      'the space is empty: give one policy at least, as an '
      'evaluation.Candidates with a name, a policy and its settings'
    )
  names = [one.name for one in given]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(
        f'{names.count(name)} policies of the space are called {name!r}; give '
        'each a name of its own'
      )
  return tuple(given)


def in_turns(
  space: Sequence[Candidates], max_length: int
) -> Iterator[Candidate]:
  """Yields all candidates, one of each policy after the other."""
  waiting = [one.at(max_length) for one in space]
  for turn in range(max(map(len, waiting))):
    yield from (found[turn] for found in waiting if turn < len(found))


def check_labels(candidates: Sequence[Candidate]) -> None:
  """Raises ValueError for candidates that look alike in words."""
  labels = [one.label for one in candidates]
  if FULL_MODEL in labels:
    raise ValueError(
      f'a policy of the space is called {FULL_MODEL!r}, as results call the '
      'model that all are held against; give it another name'
    )
  for label in labels:
    if labels.count(label) > 1:
      raise ValueError(
        f'{labels.count(label)} candidates of the space are {label}, as '
        'results write them; give them settings, or names, further apart'
      )


def coarse_first(number: int) -> list[int]:
  """Returns 0..number - 1: the middle, then the middles of what is left.

  >>> coarse_first(7)
  [3, 1, 5, 0, 2, 4, 6]
  """
  order, parts = [], [(0, number)]
  while parts:
    begin, end = parts.pop(0)
    if begin < end:
      middle = (begin + end) // 2
      order.append(middle)
      parts += [(begin, middle), (middle + 1, end)]
  return order

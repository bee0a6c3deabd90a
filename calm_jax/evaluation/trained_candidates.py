"""Policies of a space that need a trained part, where there may be none."""

import dataclasses
from collections.abc import Callable, Sequence

from calm_jax.evaluation.candidates import Candidates


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A policy that a space would have if its part were trained.

  Attributes:
    reason: what is missing.
  """

  reason: str


def where_trained(make: Callable[[], Candidates]) -> Candidates | LeftOut:
  """Returns a policy of a space, or that its part was not trained.

  In a gin file, `@name/evaluation.where_trained()` instead of
  `@name/evaluation.Candidates()`, with `evaluation.where_trained.make =
  @evaluation.Candidates`.

  Args:
    make: makes the policy, and loads what was trained for it.
  """
  try:
    return make()
  except FileNotFoundError as error:
    # gin adds to the message, from its second line on, what it was building.
    return LeftOut(str(error).strip().partition('\n')[0])


def trained_only(
  space: Sequence[Candidates | LeftOut], say: Callable[[str], None]
) -> Sequence[Candidates]:
  """Returns a space without what was left out, and says what that is.

  Args:
    space: as a file of spaces makes it.
    say: gets a line for each policy that is left out.

  Raises:
    ValueError: if nothing is left.
  """
  if not isinstance(space, Sequence):
    return space
  missing = [one for one in space if isinstance(one, LeftOut)]
  for one in missing:
    say(f'left out of the space: {one.reason}')
  if missing and len(missing) == len(space):
    raise ValueError(
      'nothing is left of the space: each of its policies has a part that was '
      'not trained; train one, or add a policy that needs none, such as '
      'those of spaces/margins.gin'
    )
  return [one for one in space if not isinstance(one, LeftOut)]

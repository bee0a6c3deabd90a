"""Bounds on several mean losses, which one certificate promises together.

A setting is bad if any of them is broken. So its p-value is the largest of the
losses' p-values: if the setting is bad, one of its losses has a risk above its
tolerance, that loss's p-value is super-uniform, and the largest is no smaller.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from calm_jax.calibration import inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
  """What is promised of one loss: its mean is at most the tolerance.

  Attributes:
    loss: the name of the loss, such as 'textual'.
    tolerance: the bound on E[loss], in the units of the losses, strictly inside
      loss_range.
    metric: the name of the metric that the loss is measured by, or ''.
    loss_range: the smallest and the largest value that the loss can have.
  """

  loss: str
  tolerance: float
  metric: str = ''
  loss_range: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    """Raises ValueError for a tolerance outside the range of the loss."""
    low, high = (float(end) for end in self.loss_range)
    object.__setattr__(self, 'loss_range', (low, high))
    object.__setattr__(self, 'tolerance', float(self.tolerance))
    try:
      inputs.check_range(self.loss_range, self.tolerance)
    except ValueError as error:
      raise ValueError(f'{self.loss} loss: {error}') from None

  @property
  def name(self) -> str:
    """The loss and its metric in words.

    >>> Bound(loss='signed', tolerance=0.02, metric='rouge_l').name
    'signed loss by rouge_l'
    """
    by = f' by {self.metric}' if self.metric else ''
    return f'{self.loss} loss{by}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestedBound(Bound):
  """A bound with what calibration found, as certificates hold it.

  Attributes:
    risks: [J], mean losses in their units; NaN where not computed.
    p_values: [J], of this loss alone; NaN where not tested.
  """

  # pytest takes classes named Test... for tests otherwise.
  __test__ = False

  risks: tuple[float, ...]
  p_values: tuple[float, ...]

  def __post_init__(self):
    """Brings numbers to one form, so that reading equals what was saved."""
    super().__post_init__()
    for name in ('risks', 'p_values'):
      object.__setattr__(self, name, numbers(getattr(self, name)))


def in_order(bounds: Sequence[Bound]) -> list[int]:
  """Returns the places of bounds in the order in which certificates have them.

  The order in which somebody writes them down means nothing. One that stands
  there twice is one.

  Raises:
    ValueError: if there are none, or a loss has two tolerances.

  >>> in_order([
  ...   Bound(loss='textual', tolerance=0.1), Bound(loss='risk', tolerance=0.05)
  ... ])
  [1, 0]
  """
  if not bounds:
    raise ValueError(
      'there are no promises; give at least one, such as '
      "('textual', 0.05): a loss and what its mean is at most"
    )
  found: dict[tuple[str, str], int] = {}
  for place, bound in enumerate(bounds):
    first = bounds[found.setdefault((bound.loss, bound.metric), place)]
    if (first.tolerance, first.loss_range) != (
      bound.tolerance,
      bound.loss_range,
    ):
      raise ValueError(
        f'the {bound.name} is promised twice, to be at most '
        f'{first.tolerance:g} and at most {bound.tolerance:g}; the smaller one '
        'implies the other, so give that alone'
      )

  def key(place):
    bound = bounds[place]
    # Losses that cannot be negative first.
    return bound.loss_range[0] < 0, bound.loss, bound.metric

  return sorted(found.values(), key=key)


def listed(parts: Iterable[str]) -> str:
  """Writes parts as a list in words.

  >>> listed(['one']), listed(['one', 'two', 'three'])
  ('one', 'one, two and three')
  """
  *most, last = parts
  return f'{", ".join(most)} and {last}' if most else last


def numbers(values: Iterable[float | None]) -> tuple[float, ...]:
  """Returns floats, None (JSON's NaN) as NaN.

  Every NaN becomes the one object math.nan: tuples compare their items by
  identity first, so certificates with untested settings still compare equal.
  """
  values = [math.nan if value is None else float(value) for value in values]
  return tuple(math.nan if math.isnan(value) else value for value in values)

"""Losses that are promised together, as files and reports name them."""

import dataclasses
import math

# To be said wherever a signed loss is reported.
SIGNED_LOSS_NOTE = (
  'A signed loss bounds the mean difference of quality: gains on some inputs '
  'offset losses on others.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromisedLoss:
  """One of several losses that are bounded together.

  Attributes:
    loss: its name: 'textual', 'risk' or 'signed'.
    metric: the text metric behind it, '' where not known.
    tolerance: what its mean must not exceed, in its units.
  """

  loss: str
  metric: str
  tolerance: float

  def describe(self) -> str:
    """Says it briefly.

    >>> PromisedLoss(loss='textual', metric='rouge_l', tolerance=0.1).describe()
    'textual loss by rouge_l at most 0.1'
    """
    metric = f' by {self.metric}' if self.metric else ''
    return f'{self.loss} loss{metric} at most {self.tolerance:g}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromiseOutcome(PromisedLoss):
  """What one of several promised losses came out as on other inputs.

  Attributes:
    mean: mean loss over the inputs, NaN where it could not be measured.
    standard_error: of that mean.
  """

  mean: float
  standard_error: float

  @property
  def kept(self) -> bool | None:
    """Whether the mean is within the tolerance; None where not measured."""
    return None if math.isnan(self.mean) else self.mean <= self.tolerance

"""How far a layer budget was used, of an evaluation or a test of abuse."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BudgetUse:
  """How far the requests of one decode used a layer budget.

  Attributes:
    per_request: the most layers of an output, or None without such a cap.
    per_token: the most layers of a token, 1..L, or None without such a cap.
    largest_request: the most layers that an output took.
    mean_request: layers per output.
    largest_token: the most layers that a token took, 1..L.
    capped_requests: share in [0, 1] of the outputs with a token that the budget
      stopped.
  """

  per_request: int | None
  per_token: int | None
  largest_request: int
  mean_request: float
  largest_token: int
  capped_requests: float

  def describe(self) -> str:
    """Says it in a few sentences."""
    parts = []
    if self.per_request is not None:
      largest = self.largest_request / self.per_request
      parts.append(
        f'an output took {self.mean_request:.1f} layers of '
        f'{self.per_request} ({self.mean_request / self.per_request:.0%}) and '
        f'at most {self.largest_request} ({largest:.0%})'
      )
    if self.per_token is not None:
      parts.append(
        f'a token took at most {self.largest_token} layers of {self.per_token}'
      )
    return (
      f'Layer budget: {"; ".join(parts)}; it stopped tokens of '
      f'{self.capped_requests:.1%} of the outputs.'
    )

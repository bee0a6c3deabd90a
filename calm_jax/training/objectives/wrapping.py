"""What an objective around another one leaves to that one."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training.forward import Draws
from calm_jax.training.objective import BatchObjective, Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrappingObjective(BatchObjective):
  """An objective around another one; says itself what its loss is.

  Attributes:
    objective: what it is around.
  """

  objective: BatchObjective = dataclasses.field(default_factory=Objective)

  def __post_init__(self):
    checks.check_no_class(self.objective, 'objective')
    if not isinstance(self.objective, BatchObjective):
      raise ValueError(
        f'{type(self).__name__} is around an objective such as '
        f'training.Objective(...), got {self.objective!r}'
      )

  @property
  def base(self) -> Objective:
    """The base of what it is around."""
    return self.objective.base

  def for_layers(self, num_layers: int) -> Self:
    """Returns the same around the same, for a decoder of so many layers."""
    return dataclasses.replace(
      self, objective=self.objective.for_layers(num_layers)
    )

  def layer_mask(
    self, draws: Draws, num_layers: int, positions: Array
  ) -> Array | None:
    """Returns which layers run inside."""
    return self.objective.layer_mask(draws, num_layers, positions)

  def description(self) -> dict[str, Any]:
    """Returns the name and all fields, those of Eq. 6 left out."""
    described: dict[str, Any] = {'name': type(self).__name__}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, BatchObjective):
        value = value.description()
      elif isinstance(value, Sequence) and not isinstance(value, str):
        value = list(value)
      described[field.name] = value
    return described

  def chain(self) -> Iterator[BatchObjective]:
    """Yields itself and what it is around, from outside in."""
    inside: BatchObjective = self
    while isinstance(inside, WrappingObjective):
      yield inside
      inside = inside.objective
    yield inside


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoosingObjective(WrappingObjective):
  """An objective that chooses which exits a step reads."""

  def __post_init__(self):
    super().__post_init__()
    _, *inside = self.chain()
    for other in inside:
      if isinstance(other, ChoosingObjective):
        raise ValueError(
          f'{type(self).__name__} is around {type(other).__name__}, and both '
          'choose the exits of a step: leave one of them out'
        )


def check_number(
  value: Any, name: str, *, low: float = 0.0, high: float | None = None
) -> None:
  """Checks a number of an objective.

  Raises:
    ValueError: naming it, if it is no finite number in [low, high].
  """
  top = float('inf') if high is None else high
  if not (
    checks.is_number(value) and low <= value <= top and value != float('inf')
  ):
    wanted = f'at least {low}' if high is None else f'in [{low}, {high}]'
    raise ValueError(f'{name} must be a finite number {wanted}, got {value!r}')

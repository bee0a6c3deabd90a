"""What a router's feed-forwards are to cost, and how it is trained for that."""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training import source_gates

_LEAST = 1e-6


@dataclasses.dataclass(frozen=True)
class TwinRouting:
  """How a router of small twins is trained.

  Attributes:
    share: of the feed-forwards' hidden units that are to run, over all tokens
      and layers together, in (0, 1]: Duo-LLM's budget (arXiv 2410.10846).
    price: of (mean cost - share)^2, beside nats per target token.
    anneal_steps: steps until the temperature is `last_temperature`, from 1
      along half a cosine.
    last_temperature: in (0, 1], of the last choices that are drawn; decoding
      takes the best option.
    reads_states: False for the control, which sees no state and learns one
      choice per layer for all tokens.
  """

  share: float = 0.5
  price: float = 10.0
  anneal_steps: int = 500
  last_temperature: float = 0.1
  reads_states: bool = True

  def __post_init__(self):
    """Raises ValueError, naming what cannot be aimed at."""
    for name, high, remedy in (
      ('share', 1.0, 'the share of hidden units to run, in (0, 1]'),
      ('price', 1e9, 'a price above 0'),
      ('last_temperature', 1.0, 'a temperature in (0, 1]'),
    ):
      value = getattr(self, name)
      if not checks.is_number(value) or not _LEAST <= value <= high:
        raise ValueError(f'{name} of TwinRouting is {value!r}; give {remedy}')
    checks.check_whole(self.anneal_steps, 'anneal_steps', low=1)
    if not isinstance(self.reads_states, bool):
      raise ValueError(
        f'reads_states of TwinRouting is {self.reads_states!r}; give True or '
        'False'
      )

  def temperature(self, step: Array) -> Array:
    """Returns the temperature after so many steps, float32."""
    return source_gates.annealed_alpha(
      step, self.anneal_steps, self.last_temperature
    )

  def loss(self, mean_cost: Array) -> Array:
    """Returns what missing the share costs, float32."""
    return self.price * jnp.square(mean_cost - self.share)

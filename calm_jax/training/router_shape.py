"""How large a router is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model
from calm_jax.array_types import Array


@dataclasses.dataclass(frozen=True)
class RouterShape:
  """The size of a router.

  Attributes:
    hidden_units: U of one hidden layer; 0 for a linear router.
    per_depth: whether every depth has a direction of its own; otherwise they
      share one and differ by a bias, as in an ordinal regression with
      proportional odds.
  """

  hidden_units: int = 0
  per_depth: bool = False

  def __post_init__(self):
    checks.check_whole(self.hidden_units, 'hidden_units', low=0)
    if not isinstance(self.per_depth, bool):
      raise ValueError(f'per_depth is {self.per_depth!r}; give True or False')

  def init(self, config: model.T5Config, key: Array) -> dict[str, Array]:
    """Returns the arrays of an `exits.Router` that answers 1/2 everywhere."""
    depths = config.num_decoder_layers - 1
    directions = depths if self.per_depth else 1
    units = self.hidden_units or directions
    arrays = {
      'bias': jnp.zeros((depths,)),
      'state': jnp.zeros((config.embed_dim, units)),
      'length_weights': jnp.zeros((units,)),
    }
    if not self.hidden_units:
      return arrays
    # Hidden units differ from the start; what they are worth begins at 0.
    draw = jax.random.normal(key, (config.embed_dim, units))
    return {
      **arrays,
      'state': draw / np.sqrt(config.embed_dim),
      'hidden_bias': jnp.zeros((units,)),
      'out': jnp.zeros((units, directions)),
    }

"""How large the heads of encoder layers are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model
from calm_jax.array_types import Array


@dataclasses.dataclass(frozen=True)
class EncoderHeadShape:
  """The size of the heads.

  Attributes:
    hidden_units: U of one hidden layer in each of them; 0 for linear heads.
  """

  hidden_units: int = 0

  def __post_init__(self):
    checks.check_whole(self.hidden_units, 'hidden_units', low=0)

  def init(
    self, config: model.T5Config, num_classes: int, key: Array
  ) -> dict[str, Array]:
    """Returns the arrays of `EncoderHeads` to which all classes are alike."""
    layers, size = config.num_encoder_layers, config.embed_dim
    bias = jnp.zeros((layers, num_classes))
    if not self.hidden_units:
      return {'kernel': jnp.zeros((layers, size, num_classes)), 'bias': bias}
    # Hidden units differ from the start; what they are worth begins at 0.
    draw = jax.random.normal(key, (layers, size, self.hidden_units))
    return {
      'kernel': draw / np.sqrt(size),
      'bias': bias,
      'hidden_bias': jnp.zeros((layers, self.hidden_units)),
      'out': jnp.zeros((layers, self.hidden_units, num_classes)),
    }

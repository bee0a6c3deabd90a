"""The early-exit classifier of arXiv 2207.07061, at decoding time.

One linear layer, shared by all exits, reads the raw residual stream and says
how likely it is that this layer's token is the last layer's. Its
weights are trained by `training.classifier_stage`; here are only they and their
answer.
"""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Classifier:
  """High when a trained linear layer expects the last layer's token already.

  confidence = sigmoid(hidden . kernel + bias), in float32, on the state before
  the final norm. A release checkpoint with two logits becomes the difference
  of its columns: kernel[:, 1] - kernel[:, 0], bias[1] - bias[0].

  Attributes:
    kernel: [D].
    bias: [].
  """

  kernel: Array
  bias: Array | float

  needs_logits = False
  minimum_exit_layer = 1

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself in float32; raises ValueError on wrong shapes."""
    del batch_size, max_length
    remedy = (
      'give the kernel [D] and bias [] trained with this model (two logits: '
      'take the difference of the columns)'
    )
    kernel = checks.checked_array(
      self.kernel,
      'classifier kernel',
      shapes=((decoder.embed_dim,),),
      remedy=remedy,
    )
    bias = checks.checked_array(self.bias, 'classifier bias', remedy=remedy)
    return Classifier(kernel=kernel, bias=bias)

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1]."""
    return jax.nn.sigmoid(self.log_odds(view.hidden))

  def log_odds(self, hidden: Array) -> Array:
    """Returns log(confidence / (1 - confidence)), float32.

    Args:
      hidden: [..., D], states before the final norm.
    """
    # A sum of products rather than a dot: full float32 on every backend.
    products = hidden.astype(jnp.float32) * self.kernel
    return products.sum(axis=-1) + self.bias

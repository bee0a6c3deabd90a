"""A token router: which of a few options each layer takes, by a token's state.

One linear map per layer, as Duo-LLM (arXiv 2410.10846) and the controllers of
"Dynamic layer selection in decoder-only transformers" (arXiv 2410.20022) have
it. What an option costs is part of the router, so that a single price makes it
take cheaper ones everywhere, or dearer ones.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exit_adapters import norm
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

# Of float32, so that no price times a cost, which is a number of the router as
# scores are, is infinite, and all scores weigh nothing beside it.
_HIGHEST_PRICE = 1e30
_HIGHEST_NUMBER = 1e8
_REMEDY = 'give the router trained with this model'


@register_pytree
@dataclasses.dataclass(frozen=True)
class TokenRouter:
  """Scores O options in every layer by the state that enters it.

  scores = state / |state| . weights[layer] + bias[layer], in float32. Without
  weights (zeros) every token gets the same: the control of such a router.

  Attributes:
    weights: [L, D, O].
    bias: [L, O].
    costs: [O], what each option costs, at least 0; the same in all layers.
  """

  weights: Array
  bias: Array
  costs: Array

  @property
  def products(self) -> int:
    """Products with D weights that a state takes per layer, for the ledger."""
    return int(self.bias.shape[-1])

  def check(self, decoder: LayeredDecoder, num_options: int) -> 'TokenRouter':
    """Returns itself in float32; raises ValueError on wrong shapes or numbers.

    Args:
      decoder: what it routes in.
      num_options: O.
    """
    layers, size = decoder.num_layers, decoder.embed_dim
    shapes = {
      'weights': (layers, size, num_options),
      'bias': (layers, num_options),
      'costs': (num_options,),
    }
    checked = {
      name: checks.checked_array(
        getattr(self, name),
        f'{name} of the token router',
        shapes=(shape,),
        low=0.0 if name == 'costs' else -_HIGHEST_NUMBER,
        high=_HIGHEST_NUMBER,
        remedy=f'{_REMEDY} ({layers} layers of width {size}, {num_options} '
        'options)',
      )
      for name, shape in shapes.items()
    }
    return TokenRouter(**checked)

  def scores(self, hidden: Array, layer: Array | int) -> Array:
    """Returns the scores of the options in a layer, float32 [..., O].

    Args:
      hidden: [..., D], the states that enter it.
      layer: 0..L-1, traced or not.
    """
    states = norm(hidden.astype(jnp.float32))[0] / np.sqrt(hidden.shape[-1])
    scores = jnp.matmul(
      states,
      jnp.asarray(self.weights)[layer],
      precision=jax.lax.Precision.HIGHEST,
    )
    return scores + jnp.asarray(self.bias)[layer]

  def choose(self, scores: Array, price: Array | float) -> Array:
    """Returns the options with the most score less cost, int32 [...].

    A higher price never takes an option that costs more; at a price of 0 it is
    the one of the highest score, at infinity the cheapest, at minus infinity
    the dearest.

    Args:
      scores: float32 [..., O].
      price: of a cost of 1, [...] or [], infinite or not.
    """
    price = jnp.clip(price, -_HIGHEST_PRICE, _HIGHEST_PRICE)
    worth = scores - jnp.asarray(price)[..., None] * self.costs
    return worth.argmax(axis=-1).astype(jnp.int32)


def price_of(threshold: Array) -> Array:
  """Returns the price that a threshold in [0, 1] stands for.

  log((1 - threshold) / threshold): 0 at 1/2, minus infinity at 1, infinity at
  0. So a higher threshold never takes a cheaper option.
  """
  return jnp.log1p(-threshold) - jnp.log(threshold)

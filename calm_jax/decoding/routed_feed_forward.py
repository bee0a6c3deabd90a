"""Which feed-forward block runs, token by token: a trained router's choice.

Duo-LLM (arXiv 2410.10846): in every layer a router sees a token's state and
takes the layer's own block, its small twin, or none. Attention runs everywhere,
so that no K/V are ever missing and each token's choice is its own.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import (
  LayeredDecoder,
  LayerWork,
  PlansAhead,
  PlanView,
)
from calm_jax.pytrees import register_pytree
from calm_jax.small_twins import OPTIONS, OWN, SmallTwins
from calm_jax.token_router import TokenRouter, price_of


@register_pytree
@dataclasses.dataclass(frozen=True)
class RoutedFeedForward(PlansAhead):
  """Runs the feed-forward block that a router takes for a token in a layer.

  The threshold t prices what blocks cost at log((1 - t) / t): at 1/2 the router
  decides as it was trained, a higher one takes no smaller block for a state,
  and 1 is the full model. It saves where all rows of a batch agree, so at batch
  1; where they do not, every block that some row wants runs.

  Attributes:
    router: trained for the model and these twins (`runs.load_twin_router`).
    threshold: float32 [] or [B] in [0, 1].
    twins: `runs.load_twins(model_dir)`; there must be some.
  """

  router: TokenRouter
  threshold: Array | float
  twins: SmallTwins | None = None

  @property
  def products(self) -> int:
    """Products with D weights that a state takes per layer."""
    return self.router.products

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'RoutedFeedForward':
    """Returns itself with arrays; raises ValueError for what does not fit."""
    del max_length
    _check_part(self.router, TokenRouter, 'router', 'load_twin_router')
    twins = self.twins
    _check_part(twins, SmallTwins, 'twins', 'load_twins')
    assert twins is not None, 'they are SmallTwins'
    threshold = checks.checked_array(
      self.threshold,
      'threshold of RoutedFeedForward',
      shapes=((), (batch_size,)),
      low=0.0,
      high=1.0,
      remedy='give one in [0, 1], where 1.0 is the full model',
    )
    return RoutedFeedForward(
      self.router.check(decoder, OPTIONS), threshold, twins.check(decoder)
    )

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Array:
    """Returns the threshold of every row, float32 [B]."""
    del decoder, max_length
    return jnp.broadcast_to(self.threshold, (batch_size,))

  def before(self, state: Array, view: PlanView) -> tuple[Array, LayerWork]:
    """Asks for attention, and for the block that the router takes."""
    scores = self.router.scores(view.hidden, view.layer)
    choice = self.router.choose(scores, price_of(state))
    choice = jnp.where(state >= 1.0, OWN, choice)
    return state, LayerWork(feed_forward=choice)


def _check_part(part: Any, kind: type, name: str, load: str) -> None:
  """Raises ValueError, or TypeError for a class, for what is not of a kind."""
  checks.check_no_class(part, f'{name} of RoutedFeedForward')
  if not isinstance(part, kind):
    raise ValueError(
      f'{name} of RoutedFeedForward is {part!r}; give {kind.__name__}, such as '
      f'runs.{load}(model_dir)'
    )

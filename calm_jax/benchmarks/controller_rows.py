"""Controllers beside their control and fixed routes, budget by budget.

All is judged on rows that nothing was trained or chosen on, teacher forced with
their labels. Prices and the picked route come from training rows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.benchmarks import controllers, routes
from calm_jax.benchmarks.controller_training import price_within
from calm_jax.benchmarks.routes import Route
from calm_jax.records import ControllerRow
from calm_jax.token_router import TokenRouter

_QUANTILES = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class RowSums:
  """Sums over the labels of each of N rows.

  Attributes:
    nats: float [N], minus their log-probability.
    tokens: float [N], labels.
    layers: float [N], layers that ran.
  """

  nats: np.ndarray
  tokens: np.ndarray
  layers: np.ndarray

  @property
  def loss(self) -> float:
    """Nats per label."""
    return float(self.nats.sum() / self.tokens.sum())

  @property
  def mean_layers(self) -> float:
    """Layers per label."""
    return float(self.layers.sum() / self.tokens.sum())


class Judge:
  """Says what controllers come to on some batches."""

  def __init__(
    self,
    config: model.T5Config,
    params: Params,
    batches: Sequence[Mapping[str, Any]],
  ):
    """Takes the batches, with T5X's keys, not packed.

    Raises:
      ValueError: if they hold no label.
    """
    self._config, self._params, self._batches = config, params, batches
    if not any((batch['decoder_loss_weights'] > 0).any() for batch in batches):
      raise ValueError('there is no target token to judge controllers by')

  def __call__(self, controller: TokenRouter, price: float = 0.0) -> RowSums:
    """Returns the sums of a controller at a price per layer."""
    look, given = _make_look(self._config), jnp.float32(price)
    found = jax.device_get(
      [
        look(self._params, controller, dict(batch), given)
        for batch in self._batches
      ]
    )
    nats, tokens, layers = map(np.concatenate, zip(*found, strict=True))
    labelled = tokens > 0
    return RowSums(nats[labelled], tokens[labelled], layers[labelled])

  def of_route(self, route: Route) -> RowSums:
    """Returns the sums of the same layers for all tokens."""
    return self(controllers.of_route(self._config, route))


def row_of(
  train: Callable[[bool, int], TokenRouter],
  seen: Judge,
  unseen: Judge,
  *,
  run: str,
  budget: int,
  num_layers: int,
  random_routes: int,
  seeds: Sequence[int],
) -> ControllerRow:
  """Returns what a budget comes to.

  Args:
    train: from whether states are read and a seed to a controller.
    seen: judges on training rows.
    unseen: on others.
    run: what the row calls it.
    budget: mean layers.
    num_layers: L.
    random_routes: how many.
    seeds: of the trainings; the first one is that of the random routes.
  """
  first, even = routes.early_exit(budget), routes.uniform(budget, num_layers)
  drawn = routes.random_routes(
    budget, num_layers, count=random_routes, seed=seeds[0]
  )
  every = list(dict.fromkeys((first, even, *drawn)))
  losses = {route: unseen.of_route(route).loss for route in every}
  picked = min(every, key=lambda route: seen.of_route(route).loss)
  fixed_routes = tuple(
    controllers.best_route(train(False, seed), budget) for seed in seeds
  )
  fixed = [unseen.of_route(route) for route in fixed_routes]
  found = [
    _at_budget(train(True, seed), seen, unseen, budget) for seed in seeds
  ]
  gain, gain_error = _gain(fixed, found)
  band = [losses[route] for route in drawn] or [math.nan]
  low, middle, high = np.quantile(band, _QUANTILES).tolist()
  return ControllerRow(
    run=run,
    budget=float(budget),
    full=unseen.of_route(routes.early_exit(num_layers)).loss,
    early_exit=losses[first],
    uniform=losses[even],
    random=(low, middle, high),
    picked=losses[picked],
    picked_route=picked,
    fixed=_mean(fixed),
    fixed_spread=_spread(fixed),
    fixed_routes=fixed_routes,
    controller=_mean(found),
    controller_spread=_spread(found),
    controller_layers=float(np.mean([one.mean_layers for one in found])),
    gain=gain,
    gain_error=gain_error,
  )


def _at_budget(
  controller: TokenRouter, seen: Judge, unseen: Judge, budget: float
) -> RowSums:
  """Returns sums of other rows at the price of the budget on training rows."""
  price, _ = price_within(
    lambda price: seen(controller, price).mean_layers, budget
  )
  return unseen(controller, price)


def _mean(found: Sequence[RowSums]) -> float:
  return float(np.mean([one.loss for one in found]))


def _spread(found: Sequence[RowSums]) -> float:
  """Returns the standard deviation of losses; NaN of a single one."""
  losses = [one.loss for one in found]
  return float(np.std(losses, ddof=1)) if len(losses) > 1 else math.nan


def _gain(
  fixed: Sequence[RowSums], found: Sequence[RowSums]
) -> tuple[float, float]:
  """Returns the gain per label, mean of seeds, and its error over rows."""
  tokens = fixed[0].tokens
  gains = np.mean(
    [one.nats - other.nats for one, other in zip(fixed, found, strict=True)],
    axis=0,
  )
  gain = gains.sum() / tokens.sum()
  apart = gains - gain * tokens
  error = np.sqrt(np.square(apart).sum()) / tokens.sum()
  return float(gain), float(error)


@functools.lru_cache(maxsize=4)
def _make_look(config: model.T5Config) -> Callable[..., Any]:
  """Returns the jitted sums [B] of nats, labels and layers at a price."""

  def look(params, controller, batch, price):
    def choose(scores, layer):
      del layer
      choice = controller.choose(scores, price)
      return choice, None, choice.astype(jnp.float32)

    states, layers = controllers.controlled_states(
      config, params, controller, batch, choose
    )
    nats = controllers.label_losses(config, params, states, batch)
    weights = jnp.asarray(batch['decoder_loss_weights'] > 0, jnp.float32)
    return tuple(
      (values * weights).sum(axis=1) for values in (nats, weights, layers)
    )

  return jax.jit(look)

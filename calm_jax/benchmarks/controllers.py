"""Token controllers: which decoder layers run for a token, by its state.

After "Dynamic layer selection in decoder-only transformers" (arXiv 2410.20022):
a linear map per layer says of the state that enters it, which is a constant to
it, whether the layer runs; the first and the last always do, and keys and
values of a layer that is left out are of the state that enters it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model, training
from calm_jax.array_types import Array, Params
from calm_jax.benchmarks.routes import Route
from calm_jax.token_router import TokenRouter
from calm_jax.training import hard_choices

# What a controller chooses between, as its options are numbered.
SKIP, RUN = 0, 1
OPTIONS = 2
# A score that no price outweighs.
_ALWAYS = 1e6

# From scores [B, T, 2] in a layer to what is chosen, shares whose slopes stand
# for it (`hard_choices.take`), and the probability of a run that is counted.
Chooser = Callable[[Array, int], tuple[Array, Array | None, Array]]


def controlled_states(
  config: model.T5Config,
  params: Params,
  controller: TokenRouter,
  batch: Mapping[str, Any],
  choose: Chooser,
) -> tuple[Array, Array]:
  """Returns the last states [B, T, D] and how many layers ran, [B, T].

  Args:
    config: the model.
    params: its parameters, frozen.
    controller: says which layers run.
    batch: with T5X's keys, not packed.
    choose: from what it says to what is done.
  """
  counted = []

  def replace(layer, entering, attended, given):
    del attended
    scores = controller.scores(jax.lax.stop_gradient(entering), layer)
    choice, shares, runs = choose(scores, layer)
    counted.append(runs)
    return hard_choices.take((entering, given), choice, shares)

  states = training.replaced_states(config, params, batch, replace)
  return states[-1], sum(counted[1:], counted[0])


def label_losses(
  config: model.T5Config,
  params: Params,
  states: Array,
  batch: Mapping[str, Any],
) -> Array:
  """Returns minus the log-probability of every label, float32 [B, T]."""
  logs = jax.nn.log_softmax(model.output_logits(config, params, states))
  labels = jnp.asarray(batch['decoder_target_tokens'])[..., None]
  return -jnp.take_along_axis(logs, labels, axis=-1)[..., 0]


def untrained(config: model.T5Config, share: float) -> TokenRouter:
  """Returns a controller to whom all tokens are alike.

  Args:
    config: the model.
    share: the probability that a layer runs, in (0, 1).
  """
  layers = config.num_decoder_layers
  odds = np.float32(np.log(share) - np.log1p(-share))
  bias = np.tile(np.array([0.0, odds], np.float32), (layers, 1))
  return _router(config, np.zeros(_shape(config), np.float32), bias)


def of_route(config: model.T5Config, route: Route) -> TokenRouter:
  """Returns what runs the layers of a route for all tokens, at any price."""
  bias = np.zeros((config.num_decoder_layers, OPTIONS), np.float32)
  bias[:, RUN] = -_ALWAYS
  bias[list(route), RUN] = _ALWAYS
  return _router(config, np.zeros(_shape(config), np.float32), bias)


def pinned(controller: TokenRouter) -> TokenRouter:
  """Returns a controller by which the first and the last layer always run."""
  ends = np.zeros(controller.bias.shape[0], bool)
  ends[[0, -1]] = True
  always = np.array([0.0, _ALWAYS], np.float32)
  return TokenRouter(
    jnp.where(ends[:, None, None], 0.0, controller.weights),
    jnp.where(ends[:, None], always, controller.bias),
    controller.costs,
  )


def best_route(controller: TokenRouter, number: int) -> Route:
  """Returns the n layers that a controller without weights scores highest."""
  bias = np.asarray(pinned(controller).bias)
  order = np.argsort(bias[:, SKIP] - bias[:, RUN], kind='stable')
  return tuple(sorted(int(layer) for layer in order[:number]))


def _shape(config: model.T5Config) -> tuple[int, int, int]:
  return config.num_decoder_layers, config.embed_dim, OPTIONS


def _router(config, weights, bias) -> TokenRouter:
  """Returns a controller whose layers cost 1 each, checked."""
  controller = TokenRouter(weights, bias, np.array([0.0, 1.0], np.float32))
  return controller.check(model.as_layered_decoder(config), OPTIONS)

"""How a frozen model agrees with itself where a router chooses its twins."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.small_twins import OPTIONS, OWN, SmallTwins
from calm_jax.token_router import TokenRouter, price_of
from calm_jax.training import hard_choices, twin_losses
from calm_jax.training.forward import Draws
from calm_jax.training.twin_losses import TwinAgreement
from calm_jax.training.twin_states import routed_states

# From scores [B, T, 3] in a layer to a choice [B, T], shares whose slopes stand
# for it (see `hard_choices.take`), and the probabilities that are counted.
Chooser = Callable[[Array, int], tuple[Array, Array | None, Array]]


def routed_agreement(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  router: TokenRouter,
  batch: Mapping[str, Any],
  choose: Chooser,
) -> tuple[TwinAgreement, Array]:
  """Returns how the model agrees with itself, and what was taken how often.

  Args:
    config: the model.
    params: its parameters, frozen.
    twins: its twins, frozen.
    router: says which block runs at a token; states are constants to it, so
      that it learns what its choices do, not to move them.
    batch: as for `training.evaluate_twins`.
    choose: from what it says to what is taken.

  Returns:
    Sums over target tokens, and float32 [L, 3]: how many took each option.
  """
  taken = []
  weights = jnp.asarray(batch['decoder_loss_weights'], jnp.float32)

  def route(layer, hidden):
    scores = router.scores(jax.lax.stop_gradient(hidden), layer)
    choice, shares, counted = choose(scores, layer)
    taken.append((counted * weights[..., None]).sum(axis=(0, 1)))
    return choice, shares

  states = routed_states(config, params, twins, batch, route)
  found = twin_losses.agreement_of(config, params, batch, states[-1])
  return found, jnp.stack(taken)


def mean_cost(router: TokenRouter, taken: Array) -> Array:
  """Returns the mean cost of a token's choices over all layers, float32.

  Args:
    router: whose options they are; its costs are constants.
    taken: [L, 3], how many target tokens took each.
  """
  costs = jax.lax.stop_gradient(router.costs)
  return (taken @ costs).sum() / jnp.maximum(taken.sum(), 1.0)


def drawn(draws: Draws, shape: tuple[int, int], temperature: Array) -> Chooser:
  """Returns what draws choices, as in training.

  Args:
    draws: what is drawn on.
    shape: (T, L).
    temperature: of the choices.
  """
  uniform = draws.uniform('twin_router', (*shape, OPTIONS))

  def choose(scores, layer):
    choice, shares = hard_choices.draw(
      scores, uniform[:, :, layer], temperature
    )
    return choice, shares, jax.nn.softmax(scores / temperature)

  return choose


def priced(router: TokenRouter, threshold: Array) -> Chooser:
  """Returns what chooses as decoding does at a threshold, float32 []."""

  def choose(scores, layer):
    del layer
    choice = router.choose(scores, price_of(threshold))
    choice = jnp.where(threshold >= 1.0, OWN, choice)
    return choice, None, jax.nn.one_hot(choice, OPTIONS)

  return choose

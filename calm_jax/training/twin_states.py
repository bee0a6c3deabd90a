"""A frozen model with small twins, teacher forced.

The model has never heard of twins. Its own pass runs, and what a decoder
layer's feed-forward block gives is replaced, position by position, by what was
chosen: the twin's, the block's own, or none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.small_twins import OWN, TWIN, SmallTwins
from calm_jax.training import hard_choices, layer_outputs
from calm_jax.training.forward import Draws

# From a layer and the states [B, T, D] that enter it to what runs there, int32
# [B, T] or what broadcasts to it, and shares [B, T, 3] whose slopes stand for
# those of the choice; None where nothing is learnt by it.
Route = Callable[[int, Array], tuple[Array, Array | None]]


def chosen_states(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  batch: Mapping[str, Any],
  choices: Array,
) -> Array:
  """Returns the states after every layer, [L, B, T, D], with some twins.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    batch: a batch with T5X's keys, packed or not.
    choices: int32 [B, T, L] or what broadcasts to it: 0 for no feed-forward, 1
      for the layer's own, 2 for its twin.
  """
  return routed_states(
    config,
    params,
    twins,
    batch,
    lambda layer, hidden: (choices[..., layer], None),
  )


def routed_states(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  batch: Mapping[str, Any],
  route: Route,
) -> Array:
  """Returns the states after every layer, [L, B, T, D], with what is routed.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    batch: a batch with T5X's keys, packed or not.
    route: says what runs in a layer; called once for each, in their order.
  """

  def replace(layer, entering, attended, given):
    choice, shares = route(layer, entering)
    # In the order of NONE, OWN, TWIN.
    options = attended, given, twins(attended, layer)
    return hard_choices.take(options, choice, shares)

  return layer_outputs.replaced_states(config, params, batch, replace)


def draw_choices(
  draws: Draws, shape: tuple[int, int], *, twin_rate: float, none_rate: float
) -> Array:
  """Draws what runs at every position in every layer, int32 [B, T, L].

  Args:
    draws: what is drawn on.
    shape: (T, L).
    twin_rate: how probable a twin is where something runs.
    none_rate: how probable it is that nothing does.
  """
  drawn = draws.uniform('small_twins', shape)
  twin = drawn < none_rate + (1.0 - none_rate) * twin_rate
  return jnp.where(drawn < none_rate, 0, jnp.where(twin, TWIN, OWN))

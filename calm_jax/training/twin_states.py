"""A frozen model with small twins, teacher forced.

The model has never heard of twins. Its own pass runs, and what a decoder
layer's feed-forward block gives is replaced, position by position, by what was
chosen: the twin's, the block's own, or none.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.model import layers
from calm_jax.small_twins import OWN, TWIN, SmallTwins
from calm_jax.training import forward
from calm_jax.training.forward import Draws


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

  def choose(run, args, kwargs, context):
    whole = isinstance(context.module, layers.DecoderLayer)
    if not whole or context.method_name != 'feed_forward':
      return run(*args, **kwargs)
    (hidden,) = args
    layer = int(context.module.name.removeprefix('layers_'))
    choice = choices[..., layer, None]
    fed = jnp.where(choice == OWN, run(hidden, **kwargs), hidden)
    return jnp.where(choice == TWIN, twins(hidden, layer), fed)

  with nn.intercept_methods(choose):
    return forward.batch_states(config, params, batch)


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

"""A frozen model whose tokens drop others from their context, teacher forced.

The model has never heard of gates. Its own pass runs, and what they say is
added, layer by layer, to the logits of its self-attention.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.context_gates import ContextGates
from calm_jax.model import layers, relative_positions
from calm_jax.training import forward


def gated_states(
  config: model.T5Config,
  params: Params,
  gates: ContextGates,
  batch: Mapping[str, Any],
  open_gates: Callable[[Array], Array],
  *,
  layer_mask: Array | None = None,
) -> tuple[Array, Array]:
  """Returns states after every layer, [L, B, T, D], and how much was kept.

  Args:
    config: the model.
    params: its parameters.
    gates: its gates.
    batch: a batch with T5X's keys, a request per row.
    open_gates: from scores float32 [B, T, T], of a later token about an earlier
      one, to gates in [0, 1].
    layer_mask: as for `model.layer_states`.

  Returns:
    The states, and keep float32 [L, B, T, T]: how much of the position j the
    one at i still reads, in [0, 1]; 1 for j = i, and what is said of j > i
    means nothing.
  """
  kept = []

  def bias_of(layer, hidden):
    query, key = gates.project(hidden, layer)
    bias, keep = keep_bias(open_gates(gates.scores(query, key, layer)))
    kept.append(keep)
    return bias

  states = biased_states(config, params, batch, bias_of, layer_mask=layer_mask)
  return states, jnp.stack(kept)


def biased_states(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  bias_of: Callable[[int, Array], Array],
  *,
  layer_mask: Array | None = None,
) -> Array:
  """Returns states [L, B, T, D] with a bias on every layer's self-attention.

  Args:
    config: the model.
    params: its parameters.
    batch: as for `gated_states`.
    bias_of: from a layer and the states [B, T, D] that enter it to what is
      added to the logits of query and key, float32 [B, T, T].
    layer_mask: as for `model.layer_states`.
  """

  def add_bias(run, args, kwargs, context):
    of_decoder = isinstance(context.module, layers.DecoderLayer)
    if not of_decoder or context.method_name != 'attend':
      return run(*args, **kwargs)
    hidden, self_kv, self_bias, *cross = args
    layer = int(context.module.name.removeprefix('layers_'))
    bias = self_bias + bias_of(layer, hidden)[:, None]
    return run(hidden, self_kv, bias, *cross, **kwargs)

  with nn.intercept_methods(add_bias):
    return forward.batch_states(config, params, batch, layer_mask=layer_mask)


def keep_bias(gates: Array) -> tuple[Array, Array]:
  """Returns log keep, for attention, and keep: float32 [B, T, T] each.

  keep_ij is the product of the gates of j at all tokens behind it up to i, so
  that what is shut stays shut (arXiv 2305.15805). Of a keep of 0 the logarithm
  is `MASKED`.

  Args:
    gates: float32 [B, T, T] in [0, 1], of the token at n about the one at j;
      only those with j < n are looked at.
  """
  behind = jnp.tril(jnp.ones(gates.shape[-2:], bool), -1)
  is_open = (gates > 0.0) | ~behind
  logs = jnp.log(jnp.where(is_open & behind, gates, 1.0))
  logs = jnp.cumsum(logs, axis=-2)
  shut = jnp.cumsum(~is_open, axis=-2) > 0
  return (
    jnp.where(shut, relative_positions.MASKED, logs),
    jnp.where(shut, 0.0, jnp.exp(logs)),
  )

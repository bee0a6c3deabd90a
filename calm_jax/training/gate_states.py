"""The states that a gate is trained on, and what layers say of them.

Under teacher forcing, of a frozen model, with no gradient into it. The logits
of one exit are in memory at a time. Where exits are read through adapters,
these come beside the parameters: what a layer says is then said through them,
as `decoding.AdaptedVocabulary` reads it, and states are what they are without.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import exits, model
from calm_jax.array_types import Array, Params
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exits import Gate
from calm_jax.pytrees import register_pytree
from calm_jax.training import step as step_lib

# `(config, params, batch, gate, key, adapters) -> GateExamples`.
GateStates = Callable[
  [
    model.T5Config,
    Params,
    Mapping[str, Any],
    Gate,
    Array,
    AdaptsExits | None,
  ],
  'GateExamples',
]


@register_pytree
@dataclasses.dataclass(frozen=True)
class GateExamples:
  """What a gate may read of a batch, and what it should find out.

  Through the exit adapters, if there are any: all but the two kinds of states.

  Attributes:
    hidden: [L-1, B, T, D], the states after each layer but the last.
    previous_hidden: [L-1, B, T, D], those that entered it.
    features: float32 [L-1, B, T, 4], see `exits.features_of`.
    consistent: bool [L-1, B, T], where the layer's token is the full model's.
    cross_entropies: float32 [L, B, T], of the full model's token, in nats.
    weights: float32 [B, T], 1 at targets and 0 at padding.
  """

  hidden: Array
  previous_hidden: Array
  features: Array
  consistent: Array
  cross_entropies: Array
  weights: Array | None

  def scores(self, gate: Gate) -> Array:
    """Returns the gate's scores, float32 [L-1, B, T]."""
    return gate.scores(self.hidden, self.previous_hidden, self.features)


def exact_states(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  gate: Gate | None = None,
  key: Array | None = None,
  adapters: AdaptsExits | None = None,
) -> GateExamples:
  """Returns the full model's states, which decoding with `CatchUp` sees.

  Args:
    config: the model.
    params: its parameters.
    batch: a batch with T5X's keys, packed or not.
    gate: not used.
    key: not used.
    adapters: what exits before the last are read through; None for as they are.
  """
  del gate, key
  return _exact(config, params, batch, adapters)[0]


def own_exit_states(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  gate: Gate,
  key: Array,
  adapters: AdaptsExits | None = None,
) -> GateExamples:
  """Returns states among K/V that are projected from the gate's own exits.

  Two passes. On the full model's states the gate says where each token leaves,
  at a threshold drawn uniformly for every row; then layers behind that are
  masked out, so that later tokens see K/V as `ProjectExitState` makes them, of
  exit states as they are. Layers that a token does not run have the full
  model's state in its place.

  Args:
    config: the model.
    params: its parameters.
    batch: a batch with T5X's keys, packed or not.
    gate: as it is now.
    key: a PRNG key, for the thresholds.
    adapters: what exits before the last are read through; None for as they are.
  """
  params, gate = jax.lax.stop_gradient((params, gate))
  exact, tokens = _exact(config, params, batch, adapters)
  thresholds = jax.random.uniform(key, exact.weights.shape[:1])[:, None]
  leaves = jax.nn.sigmoid(exact.scores(gate)) >= thresholds
  left = jnp.cumsum(leaves, axis=0) > 0
  # Layer 1 always runs.
  runs = jnp.concatenate([jnp.ones_like(left[:1]), ~left])
  states = step_lib.batch_states(
    config, params, batch, layer_mask=jnp.moveaxis(runs, 0, -1)
  )
  masked = _examples(config, params, batch, states, tokens, adapters)

  def where_run(mine, others):
    run = runs[: len(mine)]
    run = run.reshape(run.shape + (1,) * (mine.ndim - run.ndim))
    return jnp.where(run, mine, others)

  per_layer = [
    dataclasses.replace(one, weights=None) for one in (masked, exact)
  ]
  return dataclasses.replace(
    jax.tree.map(where_run, *per_layer), weights=exact.weights
  )


_STATES: dict[str, GateStates] = {
  'exact': exact_states,
  'own_exits': own_exit_states,
}


def get_gate_states(name: str) -> GateStates:
  """Returns where a gate's states come from, by name.

  Args:
    name: 'exact' or 'own_exits'.

  Raises:
    ValueError: if the name is unknown; the message lists the known ones.
  """
  if name not in _STATES:
    raise ValueError(
      f'unknown states of a gate {name!r}; known: {", ".join(sorted(_STATES))}'
    )
  return _STATES[name]


def _exact(config, params, batch, adapters) -> tuple[GateExamples, Array]:
  """Returns examples of the full model's states, and its tokens [B, T]."""
  params = jax.lax.stop_gradient(params)
  states = step_lib.batch_states(config, params, batch)
  tokens = model.output_logits(config, params, states[-1]).argmax(axis=-1)
  return _examples(config, params, batch, states, tokens, adapters), tokens


def _examples(config, params, batch, states, tokens, adapters) -> GateExamples:
  """Returns what a gate reads of states [L, B, T, D].

  Args:
    config: the model.
    params: its parameters.
    batch: the batch.
    states: the residual stream after every layer.
    tokens: int [B, T], the full model's.
    adapters: what exits before the last are read through, or None.
  """
  table = params['token_embedder']['embedding']
  embedded = jnp.take(table, batch['decoder_input_tokens'], axis=0)

  def read(exit_states):
    hidden, layer = exit_states
    if adapters is not None:
      hidden = adapters(hidden, layer)
    logits = model.output_logits(config, params, hidden)
    of_tokens = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - of_tokens[..., 0]
    features = exits.features_of(logits.reshape(-1, logits.shape[-1]), 4)
    consistent = logits.argmax(axis=-1) == tokens
    return consistent, loss, features.reshape(*tokens.shape, -1)

  # A loop: XLA would otherwise be free to hold the logits of several exits.
  consistent, losses, features = jax.lax.map(
    read, (states, jnp.arange(states.shape[0]))
  )
  examples = GateExamples(
    hidden=states[:-1],
    previous_hidden=jnp.concatenate(
      [embedded.astype(states.dtype)[None], states[:-2]]
    ),
    features=features[:-1],
    consistent=consistent[:-1],
    cross_entropies=losses,
    weights=batch['decoder_loss_weights'].astype(jnp.float32),
  )
  return jax.lax.stop_gradient(examples)

"""The pooled states that a gate of encoder layers is trained on.

An input is one position long: what a gate of tokens reads of a token's states,
a gate of an encoder reads of the mean states of an input, and of the logits of
its heads. Model and heads are frozen, with no gradient into either.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import exits, model
from calm_jax.array_types import Array, Params
from calm_jax.checkpoints import trained_parts
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exits import Gate
from calm_jax.training import encoder_head_losses
from calm_jax.training.gate_states import GateExamples

# Of heads beside the model's parameters, which have no such name.
HEADS = trained_parts.ENCODER_HEADS.key


def encoder_states(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  gate: Gate | None = None,
  key: Array | None = None,
  adapters: AdaptsExits | None = None,
) -> GateExamples:
  """Returns pooled states [L-1, B, 1, D], and what heads say of the classes.

  Cross-entropies are of the right class, and agreement is with the last layer's
  head.

  Args:
    config: the model.
    params: its parameters, and `EncoderHeads` as 'encoder_heads' beside them.
    batch: of `check_class_batch`.
    gate: not used.
    key: not used.
    adapters: not used.
  """
  del gate, key, adapters
  inputs = batch[encoder_head_losses.INPUTS]
  classes = batch[encoder_head_losses.CLASSES]
  heads = params[HEADS]
  params = {name: tree for name, tree in params.items() if name != HEADS}
  encoder = model.as_layered_encoder(config)
  pooled = encoder_head_losses.pooled_layers(config, params, inputs)
  logits = heads.all_logits(pooled)
  said = logits.argmax(axis=-1)
  features = exits.features_of(logits.reshape(-1, logits.shape[-1]), 4)
  prepared = encoder.prepare(params)
  embedded = encoder.pooled(prepared, *encoder.embed(prepared, inputs))
  examples = GateExamples(
    hidden=pooled[:-1, :, None],
    previous_hidden=jnp.concatenate([embedded[None], pooled[:-2]])[:, :, None],
    features=features.reshape(*said.shape, 1, -1)[:-1],
    consistent=(said == said[-1])[:-1, :, None],
    cross_entropies=-encoder_head_losses.class_log_probabilities(
      logits, classes
    )[:, :, None],
    weights=(classes >= 0).astype(jnp.float32)[:, None],
  )
  return jax.lax.stop_gradient(examples)

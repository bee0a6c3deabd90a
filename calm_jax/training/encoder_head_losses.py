"""What heads of encoder layers read, and their loss."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.data.class_labels import ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.source_heads import SourceHeads, read_all_layers
from calm_jax.training import losses
from calm_jax.training import step as step_lib

# In the batches that a step reads.
INPUTS = 'encoder_input_tokens'
CLASSES = 'classes'


def pooled_layers(
  config: model.T5Config,
  params: Params,
  inputs: Array,
  *,
  dropout_rng: Array | None = None,
) -> Array:
  """Returns mean normed states after every encoder layer, float32 [L, B, D].

  Args:
    config: the model.
    params: its parameters; the decoder's need not be there.
    inputs: int32 [B, S], 0 is padding.
    dropout_rng: a PRNG key switches dropout on.
  """
  encoder = model.as_layered_encoder(config)
  prepared = encoder.prepare(params)
  states = model.encoder_states(config, params, inputs, dropout_rng=dropout_rng)
  return jax.vmap(lambda hidden: encoder.pooled(prepared, hidden, inputs > 0))(
    states
  )


def head_losses(
  heads: EncoderHeads, pooled: Array, classes: Array
) -> losses.ExitMetrics:
  """Returns mean cross-entropies [L] in nats, accuracies [L], and rows.

  Args:
    heads: the heads.
    pooled: float32 [L, B, D].
    classes: int32 [B]; rows of -1 do not count.
  """
  logits = heads.all_logits(pooled)
  weights = (classes >= 0).astype(jnp.float32)
  count = jnp.maximum(weights.sum(), 1.0)
  entropies = -class_log_probabilities(logits, classes)
  right = (logits.argmax(axis=-1) == classes).astype(jnp.float32)
  return losses.ExitMetrics(
    losses=(entropies * weights).sum(axis=1) / count,
    accuracies=(right * weights).sum(axis=1) / count,
    num_tokens=weights.sum(),
  )


def class_log_probabilities(logits: Array, classes: Array) -> Array:
  """Returns log p of each row's class, [L, B], of logits [L, B, C]."""
  own = jnp.maximum(classes, 0)[None, :, None]
  chosen = jnp.take_along_axis(logits, own, axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def check_class_batch(
  batch: Mapping[str, Any], *, config: model.T5Config, labels: ClassLabels
) -> dict[str, np.ndarray]:
  """Returns the inputs and the class of every row, which a step reads.

  Raises:
    ValueError: for a bad batch, one that packs several inputs into a row, or a
      target that is no class.
  """
  arrays = step_lib.check_batch(batch, config)
  if 'encoder_segment_ids' in arrays:
    raise ValueError(
      'the batch has encoder_segment_ids, several inputs in a row, and heads '
      'classify one input per row: leave data.DataPlan.pack out'
    )
  numbers = labels.numbers_of(np.asarray(arrays['decoder_target_tokens']))
  return {INPUTS: arrays[INPUTS], CLASSES: numbers}


@functools.lru_cache(maxsize=8)
def make_class_logits(config: model.T5Config):
  """Returns the jitted `(params, heads, inputs) -> logits [L, B, C]`."""

  def class_logits(params, heads, inputs):
    if isinstance(heads, SourceHeads):
      encoder = model.as_layered_encoder(config)
      return read_all_layers(
        heads,
        encoder,
        encoder.prepare(params),
        model.encoder_states(config, params, inputs),
        inputs > 0,
      )
    return heads.all_logits(pooled_layers(config, params, inputs))

  return jax.jit(class_logits)

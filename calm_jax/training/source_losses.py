"""What a model that reads a part of its sources says, beside the whole of it.

The frozen model is the teacher: at every target position what it says with
gates on its sources is held against what it says without. Only the last layer
is held; exits of a pruned decode follow, as they read the same keys and values.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.pytrees import register_pytree
from calm_jax.training import source_gates
from calm_jax.training import step as step_lib
from calm_jax.training.teacher import Teacher


@register_pytree
@dataclasses.dataclass(frozen=True)
class SourceExamples:
  """A batch, and what the whole model makes of it; constants.

  Attributes:
    hidden: [B, S, D], the encoded sources.
    mask: bool [B, S], their tokens; none in rows that hold no request.
    best: int32 [B, T], what the model says.
    teacher: its distributions [B, T, V].
    weights: float32 [B, T], 1 at target tokens.
  """

  hidden: Array
  mask: Array
  best: Array
  teacher: Teacher
  weights: Array


def source_examples(
  config: model.T5Config, params: Params, batch: Mapping[str, Any]
) -> SourceExamples:
  """Runs the frozen model on a batch, teacher forced and without dropout.

  Args:
    config: the model.
    params: its parameters.
    batch: a batch with T5X's keys, a request per row; targets are what the
      model itself says, or any text.
  """
  encoded = model.encode(config, params, batch['encoder_input_tokens'])
  states = step_lib.batch_states(config, params, batch)
  logits = model.output_logits(config, params, states[-1])
  weights = (batch['decoder_loss_weights'] > 0).astype(jnp.float32)
  return jax.lax.stop_gradient(
    SourceExamples(
      hidden=encoded.hidden,
      mask=encoded.mask & (weights.sum(axis=1, keepdims=True) > 0),
      best=logits.argmax(axis=-1),
      teacher=Teacher.of_logits(logits),
      weights=weights,
    )
  )


def apart_with_gates(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  examples: SourceExamples,
  gates: Array,
  scores: Array,
) -> tuple[Array, Array]:
  """Returns how far the model with gates is from the one without.

  Args:
    config: the model.
    params: its parameters.
    batch: as for `source_examples`.
    examples: of the batch.
    gates: float32 [B, S].
    scores: float32 [B, S], that they are of.

  Returns:
    KL(whole || gated) in nats and how many tokens are the whole model's, sums
    over target tokens, float32 [] each.
  """
  bias = source_gates.gate_bias(gates, scores, examples.mask)
  states = step_lib.batch_states(config, params, batch, source_bias=bias)
  logits = model.output_logits(config, params, states[-1])
  normalizer = jax.nn.logsumexp(logits, axis=-1)
  apart = examples.teacher.distance(logits, normalizer)
  right = logits.argmax(axis=-1) == examples.best
  return (apart * examples.weights).sum(), (right * examples.weights).sum()


def check_source_batch(
  batch: Mapping[str, Any], config: model.T5Config
) -> dict[str, Any]:
  """Returns the arrays that a step reads.

  Raises:
    ValueError: for a bad batch, or one that packs several requests into a row.
  """
  arrays = step_lib.check_batch(batch, config)
  if 'encoder_segment_ids' in arrays:
    raise ValueError(
      'the batch has encoder_segment_ids, several requests in a row, and '
      'source positions are kept by row: leave packing out'
    )
  return arrays

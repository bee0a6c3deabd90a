"""One teacher-forced pass over a batch, which an objective turns into a loss.

What an objective draws is a function of the state's key, the step and the
number of a row in its batch, and of nothing else: a resumed run draws what the
uninterrupted one would have, and parts of a batch what the whole of it would.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.data import packing
from calm_jax.training import losses

# Tells the objective's draws from those of dropout in the same step.
_DRAWS = 0x0B7EC71
# Numbers the rows of a batch, so that its parts know which rows they are.
ROWS = 'rows'


@dataclasses.dataclass(frozen=True)
class Draws:
  """What an objective may draw on.

  Attributes:
    key: a PRNG key of the step, the same for all parts of its batch.
    step: int32 scalar, steps taken before this one.
    rows: int32 [B], the numbers of the rows in the whole batch.
  """

  key: Array
  step: Array
  rows: Array

  @classmethod
  def of_step(cls, rng: Array, step: Array, rows: Array) -> 'Draws':
    """Returns those of a step, from the key that a training state keeps."""
    key = jax.random.fold_in(jax.random.fold_in(rng, step), _DRAWS)
    return cls(key, step, rows)

  def named(self, name: str) -> Array:
    """Returns a PRNG key that is one purpose's own."""
    # Not hash(): it differs between processes.
    return jax.random.fold_in(self.key, zlib.crc32(name.encode()))

  def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Array:
    """Returns numbers in [0, 1) per row, float32 [B, *shape]."""
    key = self.named(name)
    return jax.vmap(
      lambda row: jax.random.uniform(jax.random.fold_in(key, row), shape)
    )(self.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
  """A batch, and what the model makes of it.

  Attributes:
    config: the model.
    params: its parameters.
    batch: arrays under `step.BATCH_KEYS`, packed or not; may be a part of the
      batch of a step.
    states: [L, B, T, D], the residual stream after every decoder layer.
    layer_mask: bool [B, 1, L] or [B, T, L], which layers ran; None if all did.
    draws: what may be drawn on.
    denominator: float32 scalar, what sums over target tokens are divided by.
    states_rng: the PRNG key of dropout in the layers; None without dropout.
    logits_rng: the PRNG key of dropout before the logits.
    exits: which exits are read, where an objective around the one that reads
      them has chosen; None for all.
    distilled: see `losses.multi_exit_loss`.
  """

  config: model.T5Config
  params: Params
  batch: Mapping[str, Any]
  states: Array
  layer_mask: Array | None
  draws: Draws
  denominator: Array
  states_rng: Array | None = None
  logits_rng: Array | None = None
  exits: losses.Exits | None = None
  distilled: float = 0.0

  def exit_loss(
    self, settings: losses.LossSettings
  ) -> tuple[Array, losses.ExitMetrics]:
    """Returns `losses.multi_exit_loss` of the exits that are read."""
    return losses.multi_exit_loss(
      logits_fn(self.config),
      self.params,
      self.states,
      targets=self.batch['decoder_target_tokens'],
      weights=self.batch['decoder_loss_weights'],
      settings=settings,
      denominator=self.denominator,
      dropout_rng=self.logits_rng,
      exits=self.exits,
      distilled=self.distilled,
    )

  def mean(self, values: Array) -> Array:
    """Returns the sum of values [B, T] of target tokens over `denominator`."""
    weights = jnp.asarray(self.batch['decoder_loss_weights'], jnp.float32)
    return (values * weights).sum() / self.denominator


def logits_fn(config: model.T5Config) -> losses.LogitsFn:
  """Returns the model's final norm and projection as the loss wants it."""

  def project(params, hidden, dropout_rng):
    return model.output_logits(config, params, hidden, dropout_rng=dropout_rng)

  return project


def target_positions(batch: Mapping[str, Any]) -> Array:
  """Returns each target token's position in its own output, int32 [B, T]."""
  places = jnp.arange(jnp.shape(batch['decoder_input_tokens'])[1])
  if 'decoder_segment_ids' not in batch:
    shape = jnp.shape(batch['decoder_input_tokens'])
    return jnp.broadcast_to(places, shape)
  ids = jnp.asarray(batch['decoder_segment_ids'])
  begins = jnp.diff(ids, axis=1, prepend=-1) != 0
  first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
  return places - first


def batch_states(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  *,
  layer_mask: Array | None = None,
  source_bias: Array | None = None,
  encoder_exit_layers: Array | None = None,
  dropout_rng: Array | None = None,
) -> Array:
  """Returns `model.layer_states` of a batch, packed or not: [L, B, T, D]."""
  return model.layer_states(
    config,
    params,
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    **{key: batch[key] for key in packing.SEGMENT_KEYS if key in batch},
    layer_mask=layer_mask,
    source_bias=source_bias,
    encoder_exit_layers=encoder_exit_layers,
    dropout_rng=dropout_rng,
  )

"""One step of multi-exit training and of its evaluation, jitted.

The training state is one pytree, donated from step to step. Randomness of a
step is a function of the state's key and step number alone, so that a resumed
run draws what the uninterrupted one would have drawn.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.data import packing
from calm_jax.training import accumulation, freezing, layer_weights, losses
from calm_jax.training.forward import (
  ROWS,
  Draws,
  Forward,
  batch_states,
  logits_fn,
  target_positions,
)
from calm_jax.training.objective import BatchObjective
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.state import StepMetrics, TrainState

BATCH_KEYS = (
  'encoder_input_tokens',
  'decoder_input_tokens',
  'decoder_target_tokens',
  'decoder_loss_weights',
)


def init_train_state(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  seed: int = 0,
  params: Params | None = None,
) -> TrainState:
  """Returns the state at step 0, with fresh parameters if none are given."""
  init_key, rng = jax.random.split(jax.random.key(seed))
  if params is None:
    params = _jitted_init(config)(init_key)
  else:
    # A copy, because the first step donates its input.
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
  return TrainState.start(params, optimizer.transformation, rng=rng)


@functools.lru_cache(maxsize=8)
def _jitted_init(config: model.T5Config) -> Callable[[Array], Params]:
  return jax.jit(functools.partial(model.init_params, config))


def make_train_step(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  objective: BatchObjective,
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch) -> (state, metrics)`; donates the state.

  The objective's `base.num_microbatches` are the parts that a batch is run in,
  one after the other, to save memory. The gradient is that of the whole batch,
  but for the dropout masks, which are drawn per part. They must divide the
  batch size.

  Args:
    config: the model; dropout is on if its `dropout_rate` is positive.
    optimizer: what turns gradients into updates.
    objective: how the loss comes about.

  Raises:
    ValueError: for what the objective refuses; when stepping, if parts do not
      divide the batch, or the optimizer's frozen parameters are not among the
      model's.
  """
  objective = objective.for_layers(config.num_decoder_layers)
  return _make_train_step(config, optimizer, objective)


@functools.lru_cache(maxsize=8)
def _make_train_step(config, optimizer, objective: BatchObjective):
  base = objective.base
  settings = base.settings(config.num_decoder_layers)

  def train_step(state, batch):
    dropout_rng = None
    if config.dropout_rate > 0:
      dropout_rng = jax.random.fold_in(state.rng, state.step)
    weights = jnp.asarray(batch['decoder_loss_weights'])
    whole = losses.loss_denominator(settings, weights)

    def gradients_of(part, rng):
      part = dict(part)
      draws = Draws.of_step(state.rng, state.step, part.pop(ROWS))

      def loss(params):
        params = freezing.without_gradient(optimizer.frozen, params)
        return batch_loss(
          config,
          objective,
          params,
          part,
          draws=draws,
          denominator=whole,
          dropout_rng=rng,
        )

      return jax.value_and_grad(loss, has_aux=True)(state.params)

    batch = {**batch, ROWS: jnp.arange(weights.shape[0])}
    if base.num_microbatches == 1:
      (loss, exits), gradients = gradients_of(batch, dropout_rng)
    else:
      (loss, exits), gradients = accumulation.accumulate(
        gradients_of,
        batch,
        num_microbatches=base.num_microbatches,
        dropout_rng=dropout_rng,
      )
    updates, opt_state = optimizer.transformation.update(
      gradients, state.opt_state, state.params
    )
    state = TrainState(
      step=state.step + 1,
      params=freezing.apply_updates(optimizer.frozen, state.params, updates),
      opt_state=opt_state,
      rng=state.rng,
    )
    return state, StepMetrics(
      loss=loss, exits=exits, gradient_norm=optax.global_norm(gradients)
    )

  return jax.jit(train_step, donate_argnums=0)


def batch_loss(
  config: model.T5Config,
  objective: BatchObjective,
  params: Params,
  batch: Mapping[str, Any],
  *,
  draws: Draws,
  denominator: Array,
  dropout_rng: Array | None = None,
) -> tuple[Array, losses.ExitMetrics]:
  """Runs the model on a batch, or a part of one, and its objective on that.

  Args:
    config: the model.
    objective: how the loss comes about.
    params: the model's parameters.
    batch: arrays under `BATCH_KEYS`, packed or not.
    draws: what the objective may draw on.
    denominator: float32 scalar, `losses.loss_denominator` of the whole batch.
    dropout_rng: a PRNG key switches dropout on.
  """
  states_rng = logits_rng = None
  if dropout_rng is not None:
    states_rng, logits_rng = jax.random.split(dropout_rng)
  layer_mask = objective.layer_mask(
    draws, config.num_decoder_layers, target_positions(batch)
  )
  forward = Forward(
    config=config,
    params=params,
    batch=batch,
    states=batch_states(
      config, params, batch, layer_mask=layer_mask, dropout_rng=states_rng
    ),
    layer_mask=layer_mask,
    draws=draws,
    denominator=denominator,
    states_rng=states_rng,
    logits_rng=logits_rng,
  )
  return objective.loss(forward)


@functools.cache
def make_eval_step(
  config: model.T5Config,
) -> Callable[[Params, Mapping[str, Any]], losses.ExitMetrics]:
  """Returns the jitted `(params, batch) -> ExitMetrics`.

  Without dropout, and of all layers and exits, whatever the objective was.
  """
  layers = config.num_decoder_layers
  settings = losses.LossSettings(
    layer_weights.uniform_weights(layers), z_loss=0.0
  )

  def eval_step(params, batch):
    return losses.multi_exit_loss(
      logits_fn(config),
      params,
      batch_states(config, params, batch),
      targets=batch['decoder_target_tokens'],
      weights=batch['decoder_loss_weights'],
      settings=settings,
    )[1]

  return jax.jit(eval_step)


def _as_array(key: str, value: Any) -> Any:
  """Returns an array as it is, and lists of equal length as one."""
  if hasattr(value, 'dtype'):
    return value
  try:
    array = np.asarray(value)
  except ValueError:
    array = np.asarray(None)
  if array.dtype.kind not in 'biuf':
    raise ValueError(
      f'{key} is no array of numbers: give a NumPy array [B, T], its rows '
      'padded with 0 to one length'
    )
  return array.astype(np.int32 if array.dtype.kind in 'biu' else np.float32)


def check_batch(batch: Mapping[str, Any], config: model.T5Config) -> dict:
  """Returns the arrays a step reads: the four, and segment ids if packed.

  Raises:
    ValueError: if one is missing, misshapen, or holds a token id outside the
      vocabulary (which XLA would silently clamp), or if segment ids are not as
      `packing.segment_ids` wants them.
  """
  missing = [key for key in BATCH_KEYS if key not in batch]
  if missing:
    raise ValueError(
      f'the batch lacks {missing}; it has {sorted(batch)}, and training reads '
      f'{list(BATCH_KEYS)}'
    )
  arrays = {key: _as_array(key, batch[key]) for key in BATCH_KEYS}
  shape = np.shape(arrays['decoder_target_tokens'])
  for key in BATCH_KEYS[1:]:
    if len(shape) != 2 or np.shape(arrays[key]) != shape:
      raise ValueError(
        f'{key} must be [B, T] = {shape} like decoder_target_tokens, got '
        f'{np.shape(arrays[key])}'
      )
  inputs = np.shape(arrays['encoder_input_tokens'])
  if len(inputs) != 2 or inputs[0] != shape[0]:
    raise ValueError(
      f'encoder_input_tokens must be [{shape[0]}, S], got {inputs}'
    )
  for key in BATCH_KEYS[:3]:
    # Arrays already on a device are left alone: looking would wait for them.
    tokens = arrays[key]
    if isinstance(tokens, np.ndarray) and tokens.size:
      low, high = tokens.min(), tokens.max()
      if low < 0 or high >= config.vocab_size:
        raise ValueError(
          f'{key} holds token ids {low}..{high}, the model has vocab_size '
          f'{config.vocab_size}: the vocabulary and the model do not match'
        )
  return {**arrays, **packing.segment_ids(batch)}

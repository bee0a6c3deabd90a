"""The weighted multi-exit loss of CALM, one exit's logits at a time.

Every decoder layer is an exit through the same output projection, so the logits
of all exits would take L times the memory of an ordinary model, by far the
largest array of the program. Here a `lax.scan` walks over the exits and takes
value and gradient of each exit's loss in one pass: logits are neither kept nor
computed twice, and memory does not grow with L x V.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array, Params
from calm_jax.pytrees import register_pytree
from calm_jax.training import exit_scan
from calm_jax.training.teacher import Teacher
from calm_jax.training.token_losses import LossSettings

__all__ = [
  'ExitMetrics',
  'Exits',
  'LogitsFn',
  'LossSettings',
  'all_exits',
  'loss_denominator',
  'multi_exit_loss',
]


@register_pytree
@dataclasses.dataclass(frozen=True)
class ExitMetrics:
  """What is known about every exit on one batch.

  Attributes:
    losses: float32 [L], mean cross-entropy in nats per target token, without
      z-loss and smoothing. NaN for exits of weight zero, which are not run.
    accuracies: float32 [L], share of target tokens that have the highest logit.
    num_tokens: float32 scalar, target tokens (sum of the loss weights).
  """

  losses: Array
  accuracies: Array
  num_tokens: Array


# `(params, hidden [B, T, D], dropout_rng or None) -> logits f32 [B, T, V]`.
LogitsFn = Callable[[Params, Array, Array | None], Array]


def loss_denominator(settings: LossSettings, weights: Array) -> Array:
  """Returns what a batch's sums over target tokens are divided by.

  Args:
    settings: has `loss_normalizer`.
    weights: float32 [B, T] of the whole batch.
  """
  if settings.loss_normalizer is not None:
    return jnp.float32(settings.loss_normalizer)
  # An empty batch has loss 0, not NaN.
  return jnp.maximum(weights.sum(dtype=jnp.float32), 1.0)


@dataclasses.dataclass(frozen=True)
class Exits:
  """Which exits are read, and how much each counts.

  Attributes:
    layers: int [E], indices of layers, each once; L for an entry that is empty,
      whose weight must be 0.
    weights: float32 [E].
  """

  layers: Array | np.ndarray
  weights: Array


def all_exits(settings: LossSettings) -> Exits:
  """Returns the exits of the settings, those of weight zero left out."""
  # Static weights: an exit of weight zero is not in the program.
  used = np.flatnonzero(settings.layer_weights)
  weights = jnp.asarray(settings.layer_weights, jnp.float32)
  return Exits(used, weights[used])


def multi_exit_loss(
  logits_fn: LogitsFn,
  params: Params,
  states: Array,
  *,
  targets: Array,
  weights: Array,
  settings: LossSettings,
  denominator: Array | None = None,
  dropout_rng: Array | None = None,
  exits: Exits | None = None,
  distilled: float = 0.0,
) -> tuple[Array, ExitMetrics]:
  """Returns sum_i w_i L_i (arXiv 2207.07061, Eq. 6) and the metrics per exit.

  L_i is the sum over target tokens of cross-entropy plus z-loss at exit i,
  divided by their number or by `settings.loss_normalizer`; metrics are per
  token all the same. The result is differentiable once with respect to `params`
  and `states`.

  Args:
    logits_fn: final norm and output projection; must not close over traced
      values. Float32 logits.
    params: its parameters (may hold others, which get a zero gradient).
    states: [L, B, T, D], the residual stream after every decoder layer.
    targets: int32 [B, T].
    weights: float32 [B, T], 1 where the target counts and 0 at padding.
    settings: weights of the exits and of the loss's parts.
    denominator: float32 scalar to divide by instead, for a part of a batch;
      `loss_denominator` of the whole of it.
    dropout_rng: a PRNG key handed to `logits_fn`, split over the exits.
    exits: which exits are read, instead of those of the settings.
    distilled: share of the loss of every exit but the last that is its distance
      KL(q || p) from the last layer's distribution q, a constant, instead of
      the targets' cross-entropy.

  Raises:
    ValueError: if shapes do not fit together.
  """
  layers = len(settings.layer_weights)
  _check_shapes(states, layers, targets, weights)
  if exits is None:
    exits = all_exits(settings)
  teacher = shares = None
  if distilled:
    teacher = _last_layer(logits_fn, params, states[-1])
    shares = jnp.where(exits.layers == layers - 1, 0.0, distilled)
  targets = targets.reshape(-1)
  weights = weights.reshape(-1).astype(jnp.float32)
  num_tokens = weights.sum()
  inputs = exit_scan.ExitInputs(
    states=_states_of(states, exits.layers),
    layer_weights=exits.weights,
    dropout_rngs=(
      None
      if dropout_rng is None
      else jax.random.split(dropout_rng, len(exits.layers))
    ),
    shares=shares,
  )
  head_fn, head_params = exit_scan.without_unused_params(
    logits_fn, params, jax.tree.map(lambda leaf: leaf[0], inputs)
  )
  loss, losses, accuracies = exit_scan.scan_exits(
    head_fn,
    settings,
    head_params,
    inputs,
    targets,
    # An empty batch has loss 0, not NaN.
    weights / jnp.maximum(num_tokens, 1.0),
    teacher,
  )
  if denominator is None and settings.loss_normalizer is not None:
    denominator = loss_denominator(settings, weights)
  if denominator is not None:
    loss = loss * (jnp.maximum(num_tokens, 1.0) / denominator)
  everywhere = jnp.full((layers,), jnp.nan, jnp.float32)
  return loss, ExitMetrics(
    losses=everywhere.at[exits.layers].set(losses, mode='drop'),
    accuracies=everywhere.at[exits.layers].set(accuracies, mode='drop'),
    num_tokens=num_tokens,
  )


def _check_shapes(states, layers, targets, weights) -> None:
  if states.shape[:3] != (layers, *targets.shape):
    raise ValueError(
      f'states must be [L, B, T, D] with L = {layers} (one weight each) and '
      f'[B, T] = {targets.shape}, got {states.shape}'
    )
  if weights.shape != targets.shape:
    raise ValueError(f'weights {weights.shape} != targets {targets.shape}')


def _states_of(states: Array, chosen: Array | np.ndarray) -> Array:
  """Returns the states [E, B, T, D] of the chosen layers."""
  layers = states.shape[0]
  if isinstance(chosen, np.ndarray):
    return states[chosen] if len(chosen) < layers else states
  # An empty entry is read anywhere, and weighs nothing.
  return states[jnp.minimum(chosen, layers - 1)]


def _last_layer(logits_fn, params, hidden: Array) -> Teacher:
  """Returns what the last layer says, to learn from: without a gradient."""
  logits = logits_fn(
    jax.lax.stop_gradient(params), jax.lax.stop_gradient(hidden), None
  )
  return Teacher.of_logits(logits.reshape(-1, logits.shape[-1]))

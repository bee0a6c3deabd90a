"""The weighted multi-exit loss of CALM, one exit's logits at a time.

Every decoder layer is an exit through the same output projection, so the logits
of all exits would take L times the memory of an ordinary model, by far the
largest array of the program. Here a `lax.scan` walks over the exits and takes
value and gradient of each exit's loss in one pass: logits are neither kept nor
computed twice, and memory does not grow with L x V.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array, Params
from calm_jax.pytrees import register_pytree
from calm_jax.training.token_losses import (
  LossSettings,
  logits_gradient,
  token_loss,
)

__all__ = [
  'ExitMetrics',
  'LogitsFn',
  'LossSettings',
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

  Raises:
    ValueError: if shapes do not fit together.
  """
  layers = len(settings.layer_weights)
  if states.shape[:3] != (layers, *targets.shape):
    raise ValueError(
      f'states must be [L, B, T, D] with L = {layers} (one weight each) and '
      f'[B, T] = {targets.shape}, got {states.shape}'
    )
  if weights.shape != targets.shape:
    raise ValueError(f'weights {weights.shape} != targets {targets.shape}')
  # Static weights: an exit of weight zero is left out of the program.
  used = np.flatnonzero(settings.layer_weights)
  if len(used) < layers:
    states = states[used]
  targets = targets.reshape(-1)
  weights = weights.reshape(-1).astype(jnp.float32)
  num_tokens = weights.sum()
  inputs = _ExitInputs(
    states=states,
    layer_weights=jnp.asarray(settings.layer_weights, jnp.float32)[used],
    dropout_rngs=(
      None if dropout_rng is None else jax.random.split(dropout_rng, len(used))
    ),
  )
  head_fn, head_params = _without_unused_params(
    logits_fn, params, jax.tree.map(lambda leaf: leaf[0], inputs)
  )
  loss, losses, accuracies = _scan_exits(
    head_fn,
    settings,
    head_params,
    inputs,
    targets,
    # An empty batch has loss 0, not NaN.
    weights / jnp.maximum(num_tokens, 1.0),
  )
  if denominator is None and settings.loss_normalizer is not None:
    denominator = loss_denominator(settings, weights)
  if denominator is not None:
    loss = loss * (jnp.maximum(num_tokens, 1.0) / denominator)
  everywhere = jnp.full((layers,), jnp.nan, jnp.float32)
  return loss, ExitMetrics(
    losses=everywhere.at[used].set(losses),
    accuracies=everywhere.at[used].set(accuracies),
    num_tokens=num_tokens,
  )


@register_pytree
@dataclasses.dataclass(frozen=True)
class _ExitInputs:
  """What the scan walks over; E is the number of exits that are run.

  Attributes:
    states: [E, B, T, D].
    layer_weights: float32 [E].
    dropout_rngs: PRNG keys [E], or None.
  """

  states: Array
  layer_weights: Array
  dropout_rngs: Array | None


def _without_unused_params(logits_fn, params, exit_inputs: _ExitInputs):
  """Returns `logits_fn` on the leaves that it reads, and these leaves.

  The scan adds up a gradient per leaf: of the output head, not of the model.
  Logits come as [N, V] with N = B * T positions.
  """
  leaves, structure = jax.tree.flatten(params)
  jaxpr = jax.make_jaxpr(
    lambda leaves, hidden, rng: logits_fn(
      structure.unflatten(leaves), hidden, rng
    )
  )(leaves, exit_inputs.states, exit_inputs.dropout_rngs).jaxpr
  read = {id(variable) for eqn in jaxpr.eqns for variable in eqn.invars}
  is_read = [id(variable) in read for variable in jaxpr.invars[: len(leaves)]]
  shapes = [jax.typeof(leaf) for leaf in leaves]

  def head_fn(head_params, hidden, dropout_rng):
    given = iter(head_params)
    tree = structure.unflatten(
      next(given) if used else jnp.zeros(leaf.shape, leaf.dtype)
      for used, leaf in zip(is_read, shapes, strict=True)
    )
    logits = logits_fn(tree, hidden, dropout_rng)
    return logits.reshape(-1, logits.shape[-1])

  used = zip(is_read, leaves, strict=True)
  return head_fn, [leaf for is_used, leaf in used if is_used]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan_exits(logits_fn, settings, params, inputs, targets, token_weights):
  """Returns the weighted loss, losses [E] and accuracies [E]."""

  def one_exit(loss, exit_inputs):
    logits = logits_fn(params, exit_inputs.states, exit_inputs.dropout_rngs)
    parts = token_loss(logits, targets, token_weights, settings)
    loss = loss + exit_inputs.layer_weights * parts.loss
    return loss, (parts.cross_entropy, parts.accuracy)

  loss, metrics = jax.lax.scan(one_exit, jnp.float32(0), inputs)
  return loss, *metrics


def _scan_exits_forward(
  logits_fn, settings, params, inputs, targets, token_weights
):
  """The same, with the gradient of the loss as residual."""

  def one_exit(carry, exit_inputs):
    loss, params_gradient = carry
    logits, pull_back = jax.vjp(
      lambda params, hidden: logits_fn(
        params, hidden, exit_inputs.dropout_rngs
      ),
      params,
      exit_inputs.states,
    )
    parts = token_loss(logits, targets, token_weights, settings)
    loss = loss + exit_inputs.layer_weights * parts.loss
    gradient, hidden_gradient = pull_back(
      logits_gradient(logits, targets, token_weights, parts, settings)
      * exit_inputs.layer_weights
    )
    params_gradient = jax.tree.map(jnp.add, params_gradient, gradient)
    metrics = (parts.cross_entropy, parts.accuracy)
    return (loss, params_gradient), (hidden_gradient, metrics)

  start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
  (loss, params_gradient), (states_gradient, metrics) = jax.lax.scan(
    one_exit, start, inputs
  )
  return (loss, *metrics), (params_gradient, states_gradient)


def _scan_exits_backward(logits_fn, settings, residuals, cotangents):
  del logits_fn, settings
  # Only the loss carries a gradient; losses and accuracies are for reading.
  scale = cotangents[0]
  params_gradient, states_gradient = jax.tree.map(
    lambda leaf: (leaf * scale).astype(leaf.dtype), residuals
  )
  inputs = _ExitInputs(states_gradient, None, None)
  return params_gradient, inputs, None, None


_scan_exits.defvjp(_scan_exits_forward, _scan_exits_backward)

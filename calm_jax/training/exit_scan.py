"""A walk over exits that takes value and gradient of each one's loss at once.

Logits are neither kept nor computed twice: see `losses`, whose loss this is.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.pytrees import register_pytree
from calm_jax.training.teacher import mixture
from calm_jax.training.token_losses import logits_gradient, token_loss


@register_pytree
@dataclasses.dataclass(frozen=True)
class ExitInputs:
  """What the scan walks over; E is the number of exits that are run.

  Attributes:
    states: [E, B, T, D].
    layer_weights: float32 [E].
    dropout_rngs: PRNG keys [E], or None.
    shares: float32 [E], how much of each exit's loss is its distance to the
      teacher instead of the targets; None without one.
  """

  states: Array
  layer_weights: Array
  dropout_rngs: Array | None
  shares: Array | None = None


def without_unused_params(logits_fn, params, exit_inputs: ExitInputs):
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
def scan_exits(
  logits_fn, settings, params, inputs, targets, token_weights, teacher
):
  """Returns the weighted loss, losses [E] and accuracies [E].

  Args:
    logits_fn: from `without_unused_params`.
    settings: `LossSettings`; its weights are not looked at.
    params: what `logits_fn` reads.
    inputs: what the scan walks over.
    targets: int32 [N].
    token_weights: float32 [N].
    teacher: `Teacher` of N positions, or None; a constant.
  """

  def one_exit(loss, exit_inputs):
    logits = logits_fn(params, exit_inputs.states, exit_inputs.dropout_rngs)
    parts = token_loss(
      logits,
      targets,
      token_weights,
      settings,
      mixed=mixture(teacher, exit_inputs.shares),
    )
    loss = loss + exit_inputs.layer_weights * parts.loss
    return loss, (parts.cross_entropy, parts.accuracy)

  loss, metrics = jax.lax.scan(one_exit, jnp.float32(0), inputs)
  return loss, *metrics


def _scan_exits_forward(
  logits_fn, settings, params, inputs, targets, token_weights, teacher
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
    parts = token_loss(
      logits,
      targets,
      token_weights,
      settings,
      mixed=mixture(teacher, exit_inputs.shares),
    )
    loss = loss + exit_inputs.layer_weights * parts.loss
    by_logits = logits_gradient(logits, targets, token_weights, parts, settings)
    gradient, hidden_gradient = pull_back(by_logits * exit_inputs.layer_weights)
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
  inputs = ExitInputs(states_gradient, None, None)
  return params_gradient, inputs, None, None, None


scan_exits.defvjp(_scan_exits_forward, _scan_exits_backward)

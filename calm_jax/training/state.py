"""What every training step takes and gives back, whatever it trains."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from calm_jax.array_types import Array, Params, PyTree
from calm_jax.pytrees import register_pytree
from calm_jax.training.losses import ExitMetrics


@register_pytree
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a training step changes or draws on.

  Attributes:
    step: int32 scalar, steps taken; also the number of batches consumed.
    params: the parameters that are trained, float32.
    opt_state: the optimizer's state.
    rng: a PRNG key that stays the same; step k uses fold_in(rng, k).
  """

  step: Array
  params: Params
  opt_state: PyTree
  rng: Array

  @classmethod
  def start(
    cls,
    params: Params,
    transformation: optax.GradientTransformation,
    *,
    rng: Array,
  ) -> Self:
    """Returns the state at step 0.

    Args:
      params: the parameters that are trained.
      transformation: what will turn gradients into updates.
      rng: a PRNG key.
    """
    step = jnp.zeros((), jnp.int32)
    return cls(step, params, transformation.init(params), rng)

  def after(
    self, transformation: optax.GradientTransformation, gradients: PyTree
  ) -> Self:
    """Returns the state one step later.

    Args:
      transformation: what turns gradients into updates.
      gradients: a tree like `params`.
    """
    updates, opt_state = transformation.update(
      gradients, self.opt_state, self.params
    )
    return dataclasses.replace(
      self,
      step=self.step + 1,
      params=optax.apply_updates(self.params, updates),
      opt_state=opt_state,
    )


@register_pytree
@dataclasses.dataclass(frozen=True)
class StepMetrics:
  """What one training step reports.

  Attributes:
    loss: float32 scalar, the loss that was differentiated.
    exits: cross-entropy and accuracy per exit, and the number of tokens.
    gradient_norm: float32 scalar, global norm of what is trained, before
      clipping.
  """

  loss: Array
  exits: ExitMetrics
  gradient_norm: Array


def descend(
  state: TrainState,
  loss_of: Callable[[Params], tuple[Array, Any]],
  *,
  transformation: optax.GradientTransformation,
  exits: Callable[[Any], ExitMetrics],
) -> tuple[TrainState, StepMetrics]:
  """Returns the state after a step down a loss, and what the step reports.

  Args:
    state: before it.
    loss_of: from parameters to the loss, a scalar, and what else was found.
    transformation: what turns gradients into updates.
    exits: from what else was found to the metrics of exits.
  """
  (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(
    state.params
  )
  return state.after(transformation, gradients), StepMetrics(
    loss=loss, exits=exits(found), gradient_norm=optax.global_norm(gradients)
  )

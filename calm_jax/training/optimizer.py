"""Learning-rate schedules and optimizers, as builders that gin can bind.

An `Optimizer` is an optax transformation together with its schedule, so that
the training loop can log the learning rate. The schedules are our own: joined
from optax's parts they differ in the last bits of many steps, and a run goes on
with the very rates that it would have had. Settings of Adafactor are those of
T5X (arXiv 1804.04235): updates scaled by the size of the parameter, clipped at
root mean square 1, second moments that forget with step^-0.8 and are factored
where both sides of a matrix are at least 128.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from calm_jax.array_types import Array

Schedule = Callable[[Any], Array]


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer.

  Attributes:
    transformation: `init(params)` and `update(gradients, state, params)`.
    schedule: the learning rate at a step, for the log.
    frozen: patterns of the parameters it leaves alone; see `freezing.freeze`.
  """

  transformation: optax.GradientTransformation
  schedule: Schedule
  frozen: tuple[str, ...] = ()


def constant(value: float) -> Schedule:
  """Returns a schedule that is always `value` (> 0)."""
  _check_positive('learning rate', value)
  return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def rsqrt_with_warmup(scale: float, *, warmup_steps: int) -> Schedule:
  """Returns T5's pre-training schedule, scale / sqrt(max(step, warmup_steps)).

  With scale 1 and 10,000 warm-up steps the rate is 0.01 during warm-up (arXiv
  1910.10683, section 3.1.2).
  """
  _check_positive('scale', scale)
  _check_positive('warmup_steps', warmup_steps)

  def schedule(step):
    return scale / jnp.sqrt(jnp.maximum(step, warmup_steps).astype(jnp.float32))

  return schedule


def warmup_cosine(
  peak: float,
  *,
  total_steps: int,
  warmup_steps: int = 0,
  final_fraction: float = 0.0,
) -> Schedule:
  """Returns a schedule that rises linearly and falls along half a cosine.

  Args:
    peak: the highest learning rate, > 0.
    total_steps: the step at which the rate has fallen to its end.
    warmup_steps: steps of the linear rise from peak / warmup_steps.
    final_fraction: the rate at the end, as a share of `peak`, in [0, 1].

  Raises:
    ValueError: if a number lies outside its range.
  """
  return _rise_and_fall(
    lambda progress: 0.5 * (1 + jnp.cos(math.pi * progress)),
    peak,
    total_steps=total_steps,
    warmup_steps=warmup_steps,
    final_fraction=final_fraction,
  )


def warmup_linear(
  peak: float,
  *,
  total_steps: int,
  warmup_steps: int = 0,
  final_fraction: float = 0.0,
) -> Schedule:
  """Returns a schedule that rises and falls linearly; see `warmup_cosine`."""
  return _rise_and_fall(
    lambda progress: 1 - progress,
    peak,
    total_steps=total_steps,
    warmup_steps=warmup_steps,
    final_fraction=final_fraction,
  )


def _rise_and_fall(
  fall, peak, *, total_steps, warmup_steps, final_fraction
) -> Schedule:
  """Multiplies a linear rise by `fall`, which goes from 1 to 0 on [0, 1]."""
  _check_positive('peak', peak)
  _check_positive('total_steps', total_steps)
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f'warmup_steps must lie in [0, total_steps = {total_steps}), got '
      f'{warmup_steps!r}'
    )
  if not 0 <= final_fraction <= 1:
    raise ValueError(
      f'final_fraction must lie in [0, 1], got {final_fraction!r}'
    )

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    left = fall(jnp.clip(progress, 0.0, 1.0))
    return peak * rise * (final_fraction + (1 - final_fraction) * left)

  return schedule


def adafactor(
  learning_rate: float | Schedule = 1e-3,
  *,
  clip_global_norm: float | None = None,
  decay_rate: float = 0.8,
  clipping_threshold: float | None = 1.0,
  multiply_by_parameter_scale: bool = True,
  weight_decay: float | None = None,
) -> Optimizer:
  """Returns Adafactor in T5X's settings.

  The arithmetic is T5X's (its rules by logical axis fall back to the same
  heuristic for matrices, and T5's parameters have no more than two axes). Two
  things differ around it: a run counts its steps from 0, as if T5X's
  `step_offset` were the step of the checkpoint it starts from; and
  `clip_global_norm` is T5X's `global_norm_clip_threshold`.

  Args:
    learning_rate: a number > 0 or a schedule; relative to the root mean square
      of each parameter when `multiply_by_parameter_scale`.
    clip_global_norm: upper bound of the gradient's global norm, or None.
    decay_rate: second moments decay with 1 - step^-decay_rate, in (0, 1].
    clipping_threshold: bound on the root mean square of an update, or None.
    multiply_by_parameter_scale: whether updates scale with the parameter.
    weight_decay: share of every parameter (vectors too) taken off per step,
      whatever the learning rate, as in T5X; or None.

  Raises:
    ValueError: if a number lies outside its range.
  """
  schedule = _as_schedule(learning_rate)
  if not 0 < decay_rate <= 1:
    raise ValueError(f'decay_rate must lie in (0, 1], got {decay_rate!r}')
  if clipping_threshold is not None:
    _check_positive('clipping_threshold', clipping_threshold)
  if weight_decay is not None:
    _check_not_negative('weight_decay', weight_decay)
  return _with_clipping(
    optax.adafactor(
      schedule,
      min_dim_size_to_factor=128,
      decay_rate=decay_rate,
      clipping_threshold=clipping_threshold,
      multiply_by_parameter_scale=multiply_by_parameter_scale,
      weight_decay_rate=weight_decay,
    ),
    schedule,
    clip_global_norm,
  )


def adamw(
  learning_rate: float | Schedule = 1e-3,
  weight_decay: float = 0.0,
  *,
  clip_global_norm: float | None = 1.0,
  beta1: float = 0.9,
  beta2: float = 0.98,
  epsilon: float = 1e-8,
) -> Optimizer:
  """Returns Adam with decoupled weight decay (arXiv 1711.05101).

  Decay leaves vectors (norm scales, biases) alone.

  Args:
    learning_rate: a number > 0 or a schedule.
    weight_decay: decay rate, >= 0; multiplied by the learning rate.
    clip_global_norm: upper bound of the gradient's global norm, or None.
    beta1: decay of the first moment, in [0, 1).
    beta2: decay of the second moment, in [0, 1).
    epsilon: added to the root of the second moment, > 0.

  Raises:
    ValueError: if a number lies outside its range.
  """
  schedule = _as_schedule(learning_rate)
  _check_not_negative('weight_decay', weight_decay)
  _check_positive('epsilon', epsilon)
  for name, value in (('beta1', beta1), ('beta2', beta2)):
    if not 0 <= value < 1:
      raise ValueError(f'{name} must lie in [0, 1), got {value!r}')
  return _with_clipping(
    optax.adamw(
      schedule,
      b1=beta1,
      b2=beta2,
      eps=epsilon,
      weight_decay=weight_decay,
      mask=_is_matrix,
    ),
    schedule,
    clip_global_norm,
  )


def _is_matrix(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _with_clipping(transformation, schedule, clip_global_norm) -> Optimizer:
  if clip_global_norm is not None:
    _check_positive('clip_global_norm', clip_global_norm)
    transformation = optax.chain(
      optax.clip_by_global_norm(clip_global_norm), transformation
    )
  return Optimizer(transformation=transformation, schedule=schedule)


def _as_schedule(learning_rate: float | Schedule) -> Schedule:
  if callable(learning_rate):
    return learning_rate
  return constant(learning_rate)


def _check_positive(name: str, value: Any) -> None:
  if not _is_number(value) or value <= 0:
    raise ValueError(f'{name} must be a finite number > 0, got {value!r}')


def _check_not_negative(name: str, value: Any) -> None:
  if not _is_number(value) or value < 0:
    raise ValueError(f'{name} must be a finite number >= 0, got {value!r}')


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, (int, float))
    and not isinstance(value, bool)
    and math.isfinite(value)
  )

"""A router of a frozen model: how many layers a request needs.

The model's parameters go into the step as they are and never come out; the
training state holds {'router': {...}}, the arrays of `exits.Router`, and the
optimizer's slots for these.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.exits import Router
from calm_jax.training import losses, router_labels
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.router_shape import RouterShape
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend


def router_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  slack: float = 0.05,
  shape: RouterShape | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of a router for a frozen model.

  Its directory is `router_directory` of the model's; `router_of` finds it in
  the parameters of the result. Batches hold what the full model itself says
  (`training.write_npz`); see `router_labels` for what is learnt of them.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    slack: the share of a request's tokens that may differ from the full model's
      where a depth is said to keep it, in [0, 1).
    shape: hidden units, whether depths share them; `RouterShape()` if None.
    seed: of its first weights.

  Raises:
    ValueError: for such a share outside [0, 1), or a model without a depth to
      choose.
  """
  slack = router_labels.check_slack(slack)
  shape = RouterShape() if shape is None else shape
  layers = config.num_decoder_layers
  if layers < 2:
    raise ValueError(
      'a router needs a model of at least 2 decoder layers, got '
      f'num_decoder_layers = {layers}: there is no depth to choose'
    )
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_router_state(config, optimizer, shape=shape, seed=seed),
    step=make_router_step(config, optimizer, slack=slack),
    check_batch=functools.partial(
      router_labels.check_router_batch, config=config
    ),
    constants=params,
    context={
      'router_slack': slack,
      'router_shape': repr(shape),
      **trained_parts.backbone_context(params),
    },
    title=f'a router over {layers} depths, slack {slack:g}',
    inside=True,
  )


def router_directory(
  model_dir: str | os.PathLike, name: str = trained_parts.ROUTER.key
) -> str:
  """Returns the directory of a router in that of its model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def router_of(tree: Params) -> Router:
  """Returns the router of a parameter tree {'router': {...}}."""
  return Router(**tree[trained_parts.ROUTER.key])


def init_router_state(
  config: model.T5Config, optimizer: Optimizer, *, shape: RouterShape, seed: int
) -> TrainState:
  """Returns the state at step 0: a router that answers 1/2 everywhere."""
  key = jax.random.key(seed)
  params = {trained_parts.ROUTER.key: shape.init(config, key)}
  return TrainState.start(params, optimizer.transformation, rng=key)


@functools.lru_cache(maxsize=8)
def make_router_step(
  config: model.T5Config, optimizer: Optimizer, *, slack: float
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state; `params`, the model's, are only read. The loss is the
  mean binary cross-entropy of "needs more than k layers", over requests and k.
  In the metrics `exits` are those per k: cross-entropies, shares of right
  decisions at 1/2, and requests in place of tokens.
  """

  def router_step(state, batch, params):
    examples = router_labels.router_examples(config, params, batch)
    weights, labels = examples.weights, examples.needs_more(slack)
    count = jnp.maximum(weights.sum(), 1.0)

    def loss_of(tree):
      scores = router_of(tree).scores(examples.pooled, examples.lengths).T
      entropies = optax.sigmoid_binary_cross_entropy(
        scores, labels.astype(jnp.float32)
      )
      per_depth = (entropies * weights).sum(axis=1) / count
      right = (((scores > 0) == labels) * weights).sum(axis=1) / count
      return per_depth.mean(), (per_depth, right)

    def exits(found):
      per_depth, right = found
      return losses.ExitMetrics(
        losses=per_depth, accuracies=right, num_tokens=weights.sum()
      )

    return descend(
      state, loss_of, transformation=optimizer.transformation, exits=exits
    )

  return jax.jit(router_step, donate_argnums=0)

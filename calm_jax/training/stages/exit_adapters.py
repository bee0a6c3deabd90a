"""A stage for a model that is not to be touched: adapters of its exits.

The model's parameters go into the step as they are and never come out; the
training state holds {'exit_adapters': {'scale', 'down', 'up'}}, see
`exit_adapters.ExitAdapters`, or {'scale', 'gates', 'out'}, see
`exit_layers.ExitLayers`, and the optimizer's slots for these.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from calm_jax import checks, model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exit_layers import adapters_of
from calm_jax.training import exit_adapter_losses, losses
from calm_jax.training import step as step_lib
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState

_KEY = trained_parts.EXIT_ADAPTERS.key


def exit_adapter_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  rank: int | None = 16,
  feed_forward: int | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of a frozen model's exit adapters.

  Self-distillation: every exit's distribution is pulled towards the last
  layer's, by KL(last || exit) per target token, mean over exits. It starts from
  the identity, the model as it is. Targets only say after which tokens: those
  of the model itself (its greedy outputs) are what it decodes after, and need
  no references. The directory is `exit_adapter_directory` of the model's;
  `exit_adapters_of` finds the adapters in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    rank: R, of the low-rank part; None for a scale per channel alone.
    feed_forward: F, hidden units of a feed-forward layer per exit in place of
      the low-rank part; None without.
    seed: of its first weights.

  Raises:
    ValueError: for a rank or hidden units below 1, or both, or a model without
      an exit before the last layer.
  """
  layers = config.num_decoder_layers
  if layers < 2:
    raise ValueError(
      'exit adapters need a model of at least 2 decoder layers, got '
      f'num_decoder_layers = {layers}: there is no exit before the last layer'
    )
  context, part = _sizes(rank, feed_forward)
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_exit_adapter_state(
      config, optimizer, rank=rank, feed_forward=feed_forward, seed=seed
    ),
    step=make_exit_adapter_step(config, optimizer),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    constants=params,
    context={**context, **trained_parts.backbone_context(params)},
    title=f'adapters of {layers - 1} exits, {part} each',
    inside=True,
  )


def _sizes(
  rank: int | None, feed_forward: int | None
) -> tuple[dict[str, int | None], str]:
  """Returns sizes for the context, and in words; raises ValueError for bad."""
  context = {'exit_adapter_rank': rank}
  if rank is not None:
    checks.check_whole(rank, 'rank of exit adapters', low=1)
  if feed_forward is None:
    return context, 'a scale' if rank is None else f'a scale and rank {rank}'
  checks.check_whole(
    feed_forward, 'feed_forward of exit adapters (None without it)', low=1
  )
  if rank is not None:
    raise ValueError(
      f'rank {rank} and feed_forward {feed_forward} of exit adapters are both '
      'given, and an exit has one or the other: give rank=None beside '
      'feed_forward, or leave that out'
    )
  # Runs of before it was there say nothing of it.
  context['exit_adapter_feed_forward'] = feed_forward
  return context, f'a scale and a feed-forward layer of {feed_forward} units'


def exit_adapter_directory(
  model_dir: str | os.PathLike, name: str = _KEY
) -> str:
  """Returns the directory of exit adapters in that of their model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def exit_adapters_of(tree: Params) -> AdaptsExits:
  """Returns the adapters of a parameter tree {'exit_adapters': {...}}."""
  return adapters_of(**tree[_KEY])


def init_exit_adapter_state(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  rank: int | None,
  feed_forward: int | None,
  seed: int,
) -> TrainState:
  """Returns the state at step 0: the identity."""
  exits, size = config.num_decoder_layers - 1, config.embed_dim
  key = jax.random.key(seed)
  arrays = {'scale': jnp.ones((exits, size), jnp.float32)}

  def first(inner, outer, *units):
    """Returns matrices there and back, [exits, D, ...] and [exits, ..., D]."""
    drawn = jax.random.normal(key, (exits, size, *units), jnp.float32)
    return {
      inner: drawn / np.sqrt(size).astype(np.float32),
      outer: jnp.zeros((exits, units[-1], size), jnp.float32),
    }

  if rank is not None:
    arrays |= first('down', 'up', rank)
  if feed_forward is not None:
    arrays |= first('gates', 'out', 2, feed_forward)
  params = {_KEY: arrays}
  return TrainState.start(params, optimizer.transformation, rng=key)


@functools.lru_cache(maxsize=8)
def make_exit_adapter_step(
  config: model.T5Config, optimizer: Optimizer
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state, whose parameters are the adapters'; `params`, the
  model's, are only read. In the metrics `exits.losses` are divergences of the
  first L-1 layers from the last one in nats, and `exits.accuracies` shares of
  tokens on which they agree with it.
  """

  def exit_adapter_step(state, batch, params):
    adapters = exit_adapters_of(state.params)
    found, by_adapters = exit_adapter_losses.agreement_and_gradients(
      config, params, adapters, batch
    )
    gradients = {
      _KEY: {name: getattr(by_adapters, name) for name in state.params[_KEY]}
    }
    state = state.after(optimizer.transformation, gradients)
    divergences, agreements = found.rates()
    return state, StepMetrics(
      loss=divergences.mean(),
      exits=losses.ExitMetrics(
        losses=divergences,
        accuracies=agreements,
        num_tokens=found.num_tokens,
      ),
      gradient_norm=optax.global_norm(gradients),
    )

  return jax.jit(exit_adapter_step, donate_argnums=0)

"""A stage for a model that is not to be touched: twins of its feed-forwards.

The model's parameters go into the step as they are and never come out; the
training state holds {'small_twins': {'scale', 'gates', 'out'}}, see
`small_twins.SmallTwins`, and the optimizer's slots for these.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.small_twins import SmallTwins
from calm_jax.training import step as step_lib
from calm_jax.training import twin_losses, twin_states
from calm_jax.training.forward import Draws
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend
from calm_jax.training.twin_shape import TwinShape

_KEY = trained_parts.SMALL_TWINS.key


def twin_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  shape: TwinShape | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of small twins for a frozen model.

  Duo-LLM (arXiv 2410.10846): at every token and in every layer it is drawn
  whether the layer's own feed-forward runs, its twin, or none, so that any
  mixture of them works later. The loss is the Kullback-Leibler divergence of
  the last layer's distribution from the model's own, per target token. Targets
  only say after which tokens: those of the model itself need no references.
  Twins that have learnt nothing add nothing. The directory is `twin_directory`
  of the model's; `twins_of` finds them in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    shape: hidden units, and how often they run; `TwinShape()` if None.
    seed: of its first weights and of what is drawn.
  """
  shape = TwinShape() if shape is None else shape
  layers = config.num_decoder_layers
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_twin_state(
      config, optimizer, hidden_units=shape.hidden_units, seed=seed
    ),
    step=make_twin_step(config, optimizer, shape),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    constants=params,
    context={
      'twin_shape': repr(shape),
      **trained_parts.backbone_context(params),
    },
    title=f'{layers} small twins of {shape.hidden_units} units',
    inside=True,
  )


def twin_directory(model_dir: str | os.PathLike, name: str = _KEY) -> str:
  """Returns the directory of small twins in that of their model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def twins_of(tree: Params) -> SmallTwins:
  """Returns the twins of a parameter tree {'small_twins': {...}}."""
  return SmallTwins(**tree[_KEY])


def init_twin_state(
  config: model.T5Config, optimizer: Optimizer, *, hidden_units: int, seed: int
) -> TrainState:
  """Returns the state at step 0: twins that add nothing."""
  layers, size = config.num_decoder_layers, config.embed_dim
  key, gates = jax.random.split(jax.random.key(seed))
  shape = (layers, size, 2, hidden_units)
  params = {
    _KEY: {
      'scale': jnp.ones((layers, size), jnp.float32),
      'gates': jax.random.normal(gates, shape, jnp.float32) / np.sqrt(size),
      'out': jnp.zeros((layers, hidden_units, size), jnp.float32),
    }
  }
  return TrainState.start(params, optimizer.transformation, rng=key)


@functools.lru_cache(maxsize=8)
def make_twin_step(
  config: model.T5Config, optimizer: Optimizer, shape: TwinShape
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state, whose parameters are the twins'; `params`, the model's,
  are only read. In the metrics `exits` are those of the last layer, as drawn:
  its divergence from the model in nats and the share of tokens on which it
  agrees.
  """

  def twin_step(state, batch, params):
    rows, length = batch['decoder_input_tokens'].shape
    choices = twin_states.draw_choices(
      Draws.of_step(state.rng, state.step, jnp.arange(rows)),
      (length, config.num_decoder_layers),
      twin_rate=shape.twin_rate,
      none_rate=shape.none_rate,
    )

    def loss_of(tree):
      found = twin_losses.twin_agreement(
        config, params, twins_of(tree), batch, choices
      )
      return found.rates()[0], found

    return descend(
      state,
      loss_of,
      transformation=optimizer.transformation,
      exits=twin_losses.metrics,
    )

  return jax.jit(twin_step, donate_argnums=0)

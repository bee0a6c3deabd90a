"""Gates of the decoder's own past, for a frozen model: what to drop, and when.

The model's parameters go into the step as they are and never come out; the
training state holds {'context_gates': {'queries', 'keys', 'bias'}}, the arrays
of `context_gates.ContextGates`, and the optimizer's slots for these.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.context_gates import ContextGates
from calm_jax.training import context_losses, losses, source_gates
from calm_jax.training.context_losses import ContextPrice
from calm_jax.training.context_states import gated_states
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend

_KEY = trained_parts.CONTEXT_GATES.key
# What every token scores at first, beta of arXiv 2305.15805: queries are 0.
_FIRST_SCORE = 5.0


def context_gate_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  price: ContextPrice | None = None,
  size: int = 16,
  seed: int = 0,
) -> Stage:
  """Returns the training of gates of a frozen model's own past.

  Self-distillation at a price: with keep_ij on its self-attention the model is
  to say what it says without, and the mean keep costs `price.price`. Targets
  only say after which tokens; the model's own outputs need no references. The
  directory is `context_gate_directory` of the model's; `context_gates_of` finds
  the gates in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    price: what keeping costs; `ContextPrice()` if None.
    size: R, numbers of a query and of a key.
    seed: of the first keys.
  """
  price = ContextPrice() if price is None else price
  checks.check_whole(size, 'size of context gates', low=1)
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_context_gate_state(
      config, optimizer, size=size, seed=seed
    ),
    step=make_context_gate_step(config, optimizer, price=price),
    check_batch=functools.partial(
      context_losses.check_context_batch, config=config
    ),
    constants=params,
    context={
      'context_price': dataclasses.asdict(price),
      'context_gate_size': size,
      **trained_parts.backbone_context(params),
    },
    title=f'context gates of {size} numbers, price {price.price:g}',
    inside=True,
  )


def context_gate_directory(
  model_dir: str | os.PathLike, name: str = _KEY
) -> str:
  """Returns the directory of context gates in that of their model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def context_gates_of(tree: Params) -> ContextGates:
  """Returns the gates of a parameter tree {'context_gates': {...}}."""
  return ContextGates(**tree[_KEY])


def init_context_gate_state(
  config: model.T5Config, optimizer: Optimizer, *, size: int, seed: int
) -> TrainState:
  """Returns the state at step 0: all tokens score the same.

  Queries are 0 and keys drawn, so that queries have a slope.
  """
  layers, width = config.num_decoder_layers, config.embed_dim
  key, drawn = jax.random.split(jax.random.key(seed))
  keys = jax.random.normal(drawn, (layers, width, size)) / np.sqrt(width)
  params = {
    _KEY: {
      'queries': jnp.zeros_like(keys),
      'keys': keys,
      'bias': jnp.full((layers,), _FIRST_SCORE, jnp.float32),
    }
  }
  return TrainState.start(params, optimizer.transformation, rng=key)


@functools.lru_cache(maxsize=8)
def make_context_gate_step(
  config: model.T5Config, optimizer: Optimizer, *, price: ContextPrice
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state; `params`, the model's, are only read. In the metrics
  `exits` have two entries: the divergence from the whole model in nats per
  token and the share of its tokens; what keeping costs, and the mean keep.
  """

  def context_gate_step(state, batch, params):
    examples = context_losses.context_examples(config, params, batch)
    num_tokens = examples.weights.sum()
    alpha, cost = price.alpha(state.step), price.after(state.step)

    def loss_of(tree):
      states, keep = gated_states(
        config,
        params,
        context_gates_of(tree),
        batch,
        lambda scores: source_gates.alpha_sigmoid(scores, alpha),
      )
      logits = model.output_logits(config, params, states[-1])
      per_token = 1.0 / jnp.maximum(num_tokens, 1.0)
      apart, right = (part * per_token for part in examples.apart(logits))
      mean_keep = examples.mean_keep(keep)
      parts = jnp.stack([apart, cost * mean_keep])
      return parts.sum(), (parts, jnp.stack([right, mean_keep]))

    def exits(found):
      parts, shares = found
      return losses.ExitMetrics(
        losses=parts, accuracies=shares, num_tokens=num_tokens
      )

    return descend(
      state, loss_of, transformation=optimizer.transformation, exits=exits
    )

  return jax.jit(context_gate_step, donate_argnums=0)

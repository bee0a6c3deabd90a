"""A stage beside CALM's two: a head that drafts for a frozen model.

The model's parameters go into the step as they are and never come out; the
training state holds {'draft_head': {'entry', 'bias', 'back'}}, see
`draft_heads.DraftHead`, and the optimizer's slots for these.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.draft_heads import DraftHead
from calm_jax.training import draft_head_losses, losses
from calm_jax.training import step as step_lib
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend


def draft_head_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  num_tokens: int = 3,
  width: int | None = None,
  drafts: int = 4,
  seed: int = 0,
) -> Stage:
  """Returns the training of a draft head for a frozen model.

  The loss is the mean cross-entropy of the model's own most probable tokens,
  over the first to the K-th draft. A head that has learnt nothing repeats the
  token before. Its directory is `draft_head_directory` of the model's;
  `draft_head_of` finds it in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    num_tokens: n, how many of the last tokens the head sees.
    width: H, of its hidden layer; that of the model if None.
    drafts: K, how many drafts in a row it is trained for.
    seed: of its first weights.

  Raises:
    ValueError: for numbers below 1.
  """
  width = config.embed_dim if width is None else width
  checks.check_whole(num_tokens, 'num_tokens', low=1)
  checks.check_whole(width, 'width', low=1)
  checks.check_whole(drafts, 'drafts', low=1)
  shape = (1 + num_tokens, config.embed_dim, width)
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_draft_head_state(optimizer, shape=shape, seed=seed),
    step=make_draft_head_step(config, optimizer, drafts=drafts),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    constants=params,
    context={
      'drafts': drafts,
      'draft_head_shape': list(shape),
      **trained_parts.backbone_context(params),
    },
    title=f'a draft head over {num_tokens} tokens, {drafts} drafts',
    inside=True,
  )


def draft_head_directory(
  model_dir: str | os.PathLike, name: str = trained_parts.DRAFT_HEAD.key
) -> str:
  """Returns the directory of a draft head in that of its model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def draft_head_of(tree: Params) -> DraftHead:
  """Returns the head of a parameter tree {'draft_head': {...}}."""
  return DraftHead(**tree[trained_parts.DRAFT_HEAD.key])


def init_draft_head_state(
  optimizer: Optimizer, *, shape: tuple[int, int, int], seed: int
) -> TrainState:
  """Returns the state at step 0; `shape` is that of `DraftHead.entry`."""
  parts, size, width = shape
  key = jax.random.key(seed)
  scale = 1.0 / np.sqrt(parts * size)
  params = {
    trained_parts.DRAFT_HEAD.key: {
      'entry': scale * jax.random.normal(key, shape, jnp.float32),
      'bias': jnp.zeros((width,), jnp.float32),
      'back': jnp.zeros((width, size), jnp.float32),
    }
  }
  return TrainState.start(params, optimizer.transformation, rng=key)


@functools.lru_cache(maxsize=8)
def make_draft_head_step(
  config: model.T5Config, optimizer: Optimizer, *, drafts: int
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, params) -> (state, metrics)`.

  It donates the state, whose parameters are the head's; `params`, the model's,
  are only read. In the metrics `exits.losses` are cross-entropies of the first
  to the K-th draft, and `exits.accuracies` shares that are the model's token.
  """

  def draft_head_step(state, batch, params):
    def loss_of(tree):
      counts = draft_head_losses.count_drafts(
        config, params, draft_head_of(tree), batch, drafts
      )
      return counts.rates()[0].mean(), counts

    def exits(counts):
      cross_entropies, right, _ = counts.rates()
      return losses.ExitMetrics(
        losses=cross_entropies,
        accuracies=right,
        num_tokens=counts.places[0],
      )

    return descend(
      state, loss_of, transformation=optimizer.transformation, exits=exits
    )

  return jax.jit(draft_head_step, donate_argnums=0)

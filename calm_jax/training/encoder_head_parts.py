"""The parameter tree of encoder heads, with or without their encoder."""

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.training.encoder_head_shape import EncoderHeadShape
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.state import TrainState

_KEY = trained_parts.ENCODER_HEADS.key
# What of a model an encoder is.
ENCODER_PARTS = ('token_embedder', 'encoder')


def encoder_heads_of(tree: Params) -> EncoderHeads:
  """Returns the heads of a parameter tree {'encoder_heads': {...}}."""
  return EncoderHeads(**tree[_KEY])


def with_trained_encoder(params: Params, tree: Params) -> Params:
  """Returns a model with the encoder that was trained with heads.

  Args:
    params: the model that training began with.
    tree: the parameters of the result; of heads alone, `params` come back.
  """
  return {
    **params,
    **{name: tree[name] for name in ENCODER_PARTS if name in tree},
  }


def init_encoder_head_state(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  shape: EncoderHeadShape,
  num_classes: int,
  encoder: Params | None,
  seed: int,
) -> TrainState:
  """Returns the state at step 0: heads to which all classes are alike."""
  key = jax.random.key(seed)
  params = {_KEY: shape.init(config, num_classes, key)}
  if encoder is not None:
    # A copy, because the first step donates its input.
    params |= jax.tree.map(
      lambda leaf: jnp.array(leaf, jnp.float32),
      {name: encoder[name] for name in ENCODER_PARTS},
    )
  return TrainState.start(params, optimizer.transformation, rng=key)

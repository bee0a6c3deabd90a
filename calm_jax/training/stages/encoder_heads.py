"""Heads that classify by the states of encoder layers.

Of a frozen model, whose parameters go into the step as they are and never come
out: the training state holds {'encoder_heads': {...}}, the arrays of
`encoder_heads.EncoderHeads`, and the optimizer's slots for these. Or of an
encoder that is trained with them: the state then holds it beside the heads,
under its own names.
"""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.data.class_labels import ClassLabels
from calm_jax.training import encoder_head_losses
from calm_jax.training.encoder_head_parts import (
  ENCODER_PARTS,
  encoder_heads_of,
  init_encoder_head_state,
  with_trained_encoder,
)
from calm_jax.training.encoder_head_shape import EncoderHeadShape
from calm_jax.training.layer_weights import check_layer_weights, uniform_weights
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend

_KEY = trained_parts.ENCODER_HEADS.key
LayerWeights = Sequence[float] | Callable[[int], Sequence[float]]


def encoder_head_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  labels: ClassLabels,
  layer_weights: LayerWeights = uniform_weights,
  shape: EncoderHeadShape | None = None,
  with_encoder: bool = False,
  seed: int = 0,
) -> Stage:
  """Returns the training of a head for every encoder layer.

  The loss is the weighted sum of the layers' cross-entropies. The directory is
  `encoder_head_directory` of the model's; `encoder_heads_of` finds the heads in
  the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    labels: the classes.
    layer_weights: one weight per encoder layer, or a function from their number
      to the weights.
    shape: hidden units; `EncoderHeadShape()` if None.
    with_encoder: train a copy of the encoder and the token embedder as well,
      with the model's dropout. The directory is then one of its own, and
      `with_trained_encoder` gives the model that comes of it.
    seed: of the heads' first weights, and of dropout.

  Raises:
    ValueError: for bad weights of layers.
  """
  shape = EncoderHeadShape() if shape is None else shape
  layers, classes = config.num_encoder_layers, len(labels.texts)
  if callable(layer_weights):
    layer_weights = layer_weights(layers)
  weights = check_layer_weights(layer_weights, layers)

  def init(start):
    del start
    return init_encoder_head_state(
      config,
      optimizer,
      shape=shape,
      num_classes=classes,
      encoder=params if with_encoder else None,
      seed=seed,
    )

  return Stage(
    config=config,
    optimizer=optimizer,
    init=init,
    step=make_encoder_head_step(config, optimizer, layer_weights=weights),
    check_batch=functools.partial(
      encoder_head_losses.check_class_batch, config=config, labels=labels
    ),
    constants={} if with_encoder else params,
    context={
      'encoder_head_shape': repr(shape),
      'encoder_head_weights': list(weights),
      'with_encoder': with_encoder,
      **labels.context(),
      **trained_parts.backbone_context(params),
    },
    title=f'heads of {layers} encoder layers, {classes} classes',
    inside=not with_encoder,
  )


def encoder_head_directory(
  model_dir: str | os.PathLike, name: str = _KEY
) -> str:
  """Returns the directory of encoder heads in that of their model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


@functools.lru_cache(maxsize=8)
def make_encoder_head_step(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  layer_weights: tuple[float, ...],
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, frozen) -> (state, metrics)`.

  It donates the state; `frozen`, what of the model is not in it, is only read.
  In the metrics `exits` are those of the layers' heads, and rows in place of
  tokens.
  """

  def encoder_head_step(state, batch, frozen):
    joint = ENCODER_PARTS[-1] in state.params
    dropout_rng = None
    if joint and config.dropout_rate > 0:
      dropout_rng = jax.random.fold_in(state.rng, state.step)

    def loss_of(tree):
      pooled = encoder_head_losses.pooled_layers(
        config,
        with_trained_encoder(frozen, tree),
        batch[encoder_head_losses.INPUTS],
        dropout_rng=dropout_rng,
      )
      found = encoder_head_losses.head_losses(
        encoder_heads_of(tree), pooled, batch[encoder_head_losses.CLASSES]
      )
      return (found.losses * jnp.array(layer_weights)).sum(), found

    return descend(
      state,
      loss_of,
      transformation=optimizer.transformation,
      exits=lambda found: found,
    )

  return jax.jit(encoder_head_step, donate_argnums=0)

"""A gate of encoder layers and their heads, trained on together.

The training state holds {'encoder_heads': {...}, 'gate': {...}}; the model goes
into the step as it is.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.data.class_labels import ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.source_heads import SourceHeads
from calm_jax.training import (
  encoder_gate_states,
  encoder_head_losses,
  encoder_joint_losses,
)
from calm_jax.training.encoder_head_parts import encoder_heads_of
from calm_jax.training.gate_shape import GateShape
from calm_jax.training.gate_targets import (
  CostAware,
  GateTarget,
  get_gate_target,
)
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.stages.encoder_gate import encoder_gate_stage
from calm_jax.training.stages.gate import gate_of
from calm_jax.training.state import StepMetrics, TrainState

_HEADS = encoder_gate_states.HEADS
# JEI-DNN's gate: linear, on four features of the logits, one per exit.
JEI_SHAPE = GateShape(
  hidden_units=0, inputs=('logits', 'power', 'layer'), per_layer=True
)


def encoder_joint_stage(
  config: model.T5Config,
  params: Params,
  heads: EncoderHeads | SourceHeads,
  optimizer: Optimizer,
  *,
  labels: ClassLabels,
  target: str | GateTarget = 'cost_aware',
  shape: GateShape = JEI_SHAPE,
  boosted: bool | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of a gate, and of the heads that it judges.

  The gate's loss is that of `encoder_gate_stage`, with no gradient into heads
  or encoder. Heads go on from those given, by `joint_head_loss`: what counts is
  how likely the gate lets an input leave at their layer, with no gradient into
  the gate. With the target 'cost_aware' that is JEI-DNN's training (arXiv
  2310.09163), both in every step rather than in turns; with 'quantile' the
  gradient is that of PALBERT's loss (arXiv 2204.03276) as a whole.

  `encoder_heads_of` and `gate_of` find both in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    heads: those of its encoder layers that training begins with.
    optimizer: from `training.adamw` or `training.adafactor`.
    labels: the classes that the heads were trained for.
    target: what the gate is trained for, see `get_gate_target`.
    shape: of the gate; JEI-DNN's by default.
    boosted: of `joint_head_loss`; None for 'cost_aware' alone.
    seed: of the gate's first weights.

  Raises:
    ValueError: as `encoder_gate_stage`.
  """
  alone = encoder_gate_stage(
    config,
    params,
    heads,
    optimizer,
    labels=labels,
    target=target,
    shape=shape,
    seed=seed,
  )
  target = get_gate_target(target)
  boosted = isinstance(target, CostAware) if boosted is None else boosted
  begun = alone.constants[_HEADS]

  def init(start):
    state = alone.init(start)
    # Copies, because the first step donates its input.
    arrays = {
      field.name: jnp.array(getattr(begun, field.name))
      for field in dataclasses.fields(begun)
      if getattr(begun, field.name) is not None
    }
    both = {**state.params, _HEADS: arrays}
    return dataclasses.replace(
      state, params=both, opt_state=optimizer.transformation.init(both)
    )

  return dataclasses.replace(
    alone,
    init=init,
    step=make_encoder_joint_step(
      config, optimizer, target=target, boosted=boosted
    ),
    constants=params,
    context={**alone.context, **labels.context(), 'boosted': boosted},
    title=f'{alone.title}, and the heads it judges',
  )


@functools.lru_cache(maxsize=8)
def make_encoder_joint_step(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  target: GateTarget,
  boosted: bool,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, frozen) -> (state, metrics)`.

  It donates the state; `frozen`, the model's parameters, are only read. In the
  metrics `exits` are those of the layers' heads, and rows in place of tokens.
  """

  def joint_step(state, batch, frozen):
    classes = batch[encoder_head_losses.CLASSES]
    pooled = jax.lax.stop_gradient(
      encoder_head_losses.pooled_layers(
        config, frozen, batch[encoder_head_losses.INPUTS]
      )
    )

    def loss_of(tree):
      heads = encoder_heads_of(tree)
      # No gradient goes through what a gate reads, or should find out.
      examples = encoder_gate_states.encoder_states(
        config, {**frozen, _HEADS: heads}, batch
      )
      scores = examples.scores(gate_of(tree))
      of_gate = target.loss(scores, examples)
      entropies = -encoder_head_losses.class_log_probabilities(
        heads.all_logits(pooled), classes
      )
      of_heads = encoder_joint_losses.joint_head_loss(
        entropies,
        encoder_joint_losses.exit_probabilities(target, scores[..., 0]),
        examples.weights[:, 0],
        boosted=boosted,
      )
      return of_gate + of_heads

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    found = encoder_head_losses.head_losses(
      encoder_heads_of(state.params), pooled, classes
    )
    state = state.after(optimizer.transformation, gradients)
    return state, StepMetrics(
      loss=loss, exits=found, gradient_norm=optax.global_norm(gradients)
    )

  return jax.jit(joint_step, donate_argnums=0)

"""A gate of encoder layers: whether an input may leave, for frozen heads.

The state, and the step, are those of `gate`; the model and its heads go into
the step as they are.
"""

import dataclasses
import functools

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import trained_parts
from calm_jax.data.class_labels import ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.source_heads import SourceHeads
from calm_jax.training import encoder_gate_states, encoder_head_losses
from calm_jax.training.gate_shape import GateShape
from calm_jax.training.gate_targets import GateTarget, get_gate_target
from calm_jax.training.judged_heads import judged_context
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.stages import gate as gate_stage_lib


def encoder_gate_stage(
  config: model.T5Config,
  params: Params,
  heads: EncoderHeads | SourceHeads,
  optimizer: Optimizer,
  *,
  labels: ClassLabels,
  target: str | GateTarget = 'quantile',
  shape: GateShape | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of a gate for a frozen encoder and its heads.

  With the target 'quantile' it is the Lambda head of PALBERT (arXiv
  2204.03276), to be asked by `exits.QuantileExit`: the expected cross-entropy
  of leaving at random, and PonderNet's divergence from a geometric prior, the
  mass completed at the last layer. With 'cost_aware' and the input 'logits' it
  is the gate of JEI-DNN (arXiv 2310.09163). Its directory is `gate_directory`
  of the model's, `gate_of` finds it in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    heads: those of its encoder layers, likewise.
    optimizer: from `training.adamw` or `training.adafactor`.
    labels: the classes that the heads were trained for.
    target: what it is trained for, see `get_gate_target`.
    shape: hidden units, inputs, whether exits share it; `GateShape()` if None.
    seed: of its first weights.

  Raises:
    ValueError: for an unknown target, heads of another shape, or an encoder
      without an exit to judge.
  """
  target = get_gate_target(target)
  shape = GateShape() if shape is None else shape
  layers = config.num_encoder_layers
  if layers < 2:
    raise ValueError(
      'a gate needs a model of at least 2 encoder layers, got '
      f'num_encoder_layers = {layers}: there is no exit before the last layer'
    )
  # A gate is as deep as what it judges.
  judged = dataclasses.replace(config, num_decoder_layers=layers)
  if not isinstance(heads, EncoderHeads):
    raise ValueError(
      f'a gate is trained for heads of their own, got {type(heads).__name__}; '
      'give what train_encoder_heads trained, or exit by what label words say '
      'themselves, exits.SoftmaxMaximum()'
    )
  checked = heads.check(model.as_layered_encoder(config))
  if checked.num_classes != len(labels.texts):
    raise ValueError(
      f'the heads say {checked.num_classes} classes, and there are '
      f'{len(labels.texts)}: give those that they were trained for'
    )
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: gate_stage_lib.init_gate_state(
      judged, optimizer, shape=shape, seed=seed
    ),
    step=gate_stage_lib.make_gate_step(
      config,
      optimizer,
      target=target,
      states=encoder_gate_states.encoder_states,
    ),
    check_batch=functools.partial(
      encoder_head_losses.check_class_batch, config=config, labels=labels
    ),
    constants={**params, encoder_gate_states.HEADS: checked},
    context={
      'gate_target': repr(target),
      'gate_states': 'encoder',
      'gate_shape': repr(shape),
      **judged_context({encoder_gate_states.HEADS: heads}),
      **trained_parts.backbone_context(params),
    },
    title=f'a gate of {layers - 1} encoder exits, {target}',
    inside=True,
  )

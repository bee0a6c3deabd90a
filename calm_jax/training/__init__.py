"""Training in stages, from an iterator of batches.

`train` runs any stage; `multi_exit_stage` trains the model, `classifier_stage`
the early-exit classifier of a finished one, `gate_stage` a gate of it,
`router_stage` what gives each request its depth,
`source_scorer_stage` what chooses among its source positions,
`context_gate_stage` what drops tokens of its own past,
`draft_head_stage` a head that drafts for it, `exit_adapter_stage` what its
early layers are read through, `twin_stage` small twins of its feed-forwards,
`twin_router_stage` what chooses among these and the twins,
`encoder_head_stage` what classifies by its encoder's layers,
`encoder_gate_stage` when an input may leave these.
`Plan` and `Objective` (or what is around one:
`SampledDepth`, `LayerDropout`, ...) say what a run does, optimizers and
schedules are builders, and gin binds all of them.
`teacher_forced_evaluator` measures every exit. No TensorFlow and no seqio:
batches are dicts of NumPy arrays from wherever.
"""

from calm_jax.data.token_batches import npz_batches
from calm_jax.data.token_files import (
  npz_input_hashes,
  npz_metadata,
  write_npz,
)
from calm_jax.training.classifier_evaluation import (
  ClassifierCounts,
  evaluate_classifier,
)
from calm_jax.training.classifier_losses import get_classifier_loss
from calm_jax.training.context_evaluation import (
  ContextMeasurement,
  evaluate_context_gates,
)
from calm_jax.training.context_losses import ContextPrice
from calm_jax.training.context_states import gated_states
from calm_jax.training.draft_head_losses import (
  DraftCounts,
  evaluate_draft_head,
)
from calm_jax.training.encoder_head_evaluation import (
  ClassLogits,
  class_logits,
  fit_class_temperatures,
)
from calm_jax.training.encoder_head_losses import pooled_layers
from calm_jax.training.encoder_head_parts import (
  encoder_heads_of,
  with_trained_encoder,
)
from calm_jax.training.encoder_head_shape import EncoderHeadShape
from calm_jax.training.evaluators import (
  Evaluator,
  teacher_forced_evaluator,
)
from calm_jax.training.exit_adapter_losses import (
  ExitAgreement,
  evaluate_exit_adapters,
)
from calm_jax.training.forward import Draws, Forward
from calm_jax.training.freezing import freeze
from calm_jax.training.gate_evaluation import (
  GateMeasurement,
  evaluate_gate,
)
from calm_jax.training.gate_shape import GateShape
from calm_jax.training.gate_states import GateExamples, get_gate_states
from calm_jax.training.gate_targets import (
  Consistency,
  CostAware,
  GateTarget,
  Quantile,
  get_gate_target,
)
from calm_jax.training.judged_heads import JudgedHeads
from calm_jax.training.layer_outputs import replaced_states
from calm_jax.training.layer_weights import (
  last_heavy_weights,
  last_layer_weights,
  layer_skip_weights,
  linear_weights,
  quadratic_weights,
  subset_weights,
  uniform_weights,
)
from calm_jax.training.loop import train
from calm_jax.training.losses import LossSettings, multi_exit_loss
from calm_jax.training.objective import BatchObjective, Objective
from calm_jax.training.objectives.every_encoder_depth import (
  EveryEncoderDepth,
)
from calm_jax.training.objectives.layer_dropout import LayerDropout
from calm_jax.training.objectives.own_exits import OwnExits
from calm_jax.training.objectives.planned_layers import PlannedLayers
from calm_jax.training.objectives.pulled_states import PulledStates
from calm_jax.training.objectives.rotated_exits import RotatedExits
from calm_jax.training.objectives.sampled_depth import SampledDepth
from calm_jax.training.objectives.sampled_encoder_depth import (
  SampledEncoderDepth,
)
from calm_jax.training.objectives.self_distillation import SelfDistillation
from calm_jax.training.objectives.wrapping import WrappingObjective
from calm_jax.training.optimizer import (
  Optimizer,
  adafactor,
  adamw,
  constant,
  rsqrt_with_warmup,
  warmup_cosine,
  warmup_linear,
)
from calm_jax.training.plan import Plan, TrainResult
from calm_jax.training.router_evaluation import (
  RouterMeasurement,
  evaluate_router,
)
from calm_jax.training.router_labels import RouterExamples, router_examples
from calm_jax.training.router_shape import RouterShape
from calm_jax.training.seen_rows import npz_rows
from calm_jax.training.source_evaluation import (
  SourceMeasurement,
  evaluate_source_scorer,
)
from calm_jax.training.source_gates import SourceBudget, alpha_sigmoid
from calm_jax.training.stage import Stage
from calm_jax.training.stages.classifier import (
  classifier_directory,
  classifier_of,
  classifier_stage,
)
from calm_jax.training.stages.context_gates import (
  context_gate_directory,
  context_gate_stage,
  context_gates_of,
)
from calm_jax.training.stages.draft_head import (
  draft_head_directory,
  draft_head_of,
  draft_head_stage,
)
from calm_jax.training.stages.encoder_gate import encoder_gate_stage
from calm_jax.training.stages.encoder_heads import (
  encoder_head_directory,
  encoder_head_stage,
)
from calm_jax.training.stages.encoder_joint import (
  JEI_SHAPE,
  encoder_joint_stage,
)
from calm_jax.training.stages.exit_adapters import (
  exit_adapter_directory,
  exit_adapter_stage,
  exit_adapters_of,
)
from calm_jax.training.stages.gate import (
  gate_directory,
  gate_of,
  gate_stage,
)
from calm_jax.training.stages.multi_exit import multi_exit_stage
from calm_jax.training.stages.router import (
  router_directory,
  router_of,
  router_stage,
)
from calm_jax.training.stages.small_twins import (
  twin_directory,
  twin_stage,
  twins_of,
)
from calm_jax.training.stages.source_scorer import (
  source_scorer_directory,
  source_scorer_of,
  source_scorer_stage,
)
from calm_jax.training.stages.twin_router import (
  twin_router_directory,
  twin_router_of,
  twin_router_stage,
)
from calm_jax.training.state import StepMetrics, TrainState, descend
from calm_jax.training.step import (
  init_train_state,
  make_eval_step,
  make_train_step,
)
from calm_jax.training.temperatures import (
  FittedTemperatures,
  fit_temperatures,
)
from calm_jax.training.twin_losses import TwinAgreement, evaluate_twins
from calm_jax.training.twin_router_evaluation import evaluate_twin_router
from calm_jax.training.twin_routing import TwinRouting
from calm_jax.training.twin_shape import TwinShape
from calm_jax.training.twin_states import chosen_states, routed_states

__all__ = [
  'JEI_SHAPE',
  'BatchObjective',
  'ClassLogits',
  'ClassifierCounts',
  'Consistency',
  'ContextMeasurement',
  'ContextPrice',
  'CostAware',
  'DraftCounts',
  'Draws',
  'EncoderHeadShape',
  'Evaluator',
  'EveryEncoderDepth',
  'ExitAgreement',
  'FittedTemperatures',
  'Forward',
  'GateExamples',
  'GateMeasurement',
  'GateShape',
  'GateTarget',
  'JudgedHeads',
  'LayerDropout',
  'LossSettings',
  'Objective',
  'Optimizer',
  'OwnExits',
  'Plan',
  'PlannedLayers',
  'PulledStates',
  'Quantile',
  'RotatedExits',
  'RouterExamples',
  'RouterMeasurement',
  'RouterShape',
  'SampledDepth',
  'SampledEncoderDepth',
  'SelfDistillation',
  'SourceBudget',
  'SourceMeasurement',
  'Stage',
  'StepMetrics',
  'TrainResult',
  'TrainState',
  'TwinAgreement',
  'TwinRouting',
  'TwinShape',
  'WrappingObjective',
  'adafactor',
  'adamw',
  'alpha_sigmoid',
  'chosen_states',
  'class_logits',
  'classifier_directory',
  'classifier_of',
  'classifier_stage',
  'constant',
  'context_gate_directory',
  'context_gate_stage',
  'context_gates_of',
  'descend',
  'draft_head_directory',
  'draft_head_of',
  'draft_head_stage',
  'encoder_gate_stage',
  'encoder_head_directory',
  'encoder_head_stage',
  'encoder_heads_of',
  'encoder_joint_stage',
  'evaluate_classifier',
  'evaluate_context_gates',
  'evaluate_draft_head',
  'evaluate_exit_adapters',
  'evaluate_gate',
  'evaluate_router',
  'evaluate_source_scorer',
  'evaluate_twin_router',
  'evaluate_twins',
  'exit_adapter_directory',
  'exit_adapter_stage',
  'exit_adapters_of',
  'fit_class_temperatures',
  'fit_temperatures',
  'freeze',
  'gate_directory',
  'gate_of',
  'gate_stage',
  'gated_states',
  'get_classifier_loss',
  'get_gate_states',
  'get_gate_target',
  'init_train_state',
  'last_heavy_weights',
  'last_layer_weights',
  'layer_skip_weights',
  'linear_weights',
  'make_eval_step',
  'make_train_step',
  'multi_exit_loss',
  'multi_exit_stage',
  'npz_batches',
  'npz_input_hashes',
  'npz_metadata',
  'npz_rows',
  'pooled_layers',
  'quadratic_weights',
  'replaced_states',
  'routed_states',
  'router_directory',
  'router_examples',
  'router_of',
  'router_stage',
  'rsqrt_with_warmup',
  'source_scorer_directory',
  'source_scorer_of',
  'source_scorer_stage',
  'subset_weights',
  'teacher_forced_evaluator',
  'train',
  'twin_directory',
  'twin_router_directory',
  'twin_router_of',
  'twin_router_stage',
  'twin_stage',
  'twins_of',
  'uniform_weights',
  'warmup_cosine',
  'warmup_linear',
  'with_trained_encoder',
  'write_npz',
]

"""Training with the weighted multi-exit loss, from an iterator of batches.

`train` is the loop; optimizers and schedules are builders that gin can bind;
`teacher_forced_evaluator` measures every exit. No TensorFlow and no seqio:
batches are dicts of NumPy arrays from wherever.
"""

from calm_jax.training.evaluators import teacher_forced_evaluator
from calm_jax.training.layer_weights import (
  last_layer_weights,
  linear_weights,
  uniform_weights,
)
from calm_jax.training.loop import TrainResult, train
from calm_jax.training.losses import LossSettings, multi_exit_loss
from calm_jax.training.optimizer import (
  Optimizer,
  adafactor,
  adamw,
  constant,
  rsqrt_with_warmup,
  warmup_cosine,
)
from calm_jax.training.step import (
  TrainState,
  init_train_state,
  make_eval_step,
  make_train_step,
)

__all__ = [
  'LossSettings',
  'Optimizer',
  'TrainResult',
  'TrainState',
  'adafactor',
  'adamw',
  'constant',
  'init_train_state',
  'last_layer_weights',
  'linear_weights',
  'make_eval_step',
  'make_train_step',
  'multi_exit_loss',
  'rsqrt_with_warmup',
  'teacher_forced_evaluator',
  'train',
  'uniform_weights',
  'warmup_cosine',
]

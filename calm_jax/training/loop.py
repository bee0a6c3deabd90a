"""The training loop: steps, a log, evaluations, checkpoints, and resuming.

Running the same call again goes on where the last checkpoint of `model_dir`
left off: parameters, optimizer, random numbers, data and log. Ctrl-C and
SIGTERM save before they end the run; a run killed outright keeps its last
checkpoint; a NaN stops the run and is never saved. Checkpoints are written
while training goes on.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax.array_types import Params
from calm_jax.model import T5Config
from calm_jax.training import layer_weights as weights_lib
from calm_jax.training import losses
from calm_jax.training import step as step_lib
from calm_jax.training.evaluators import Evaluator
from calm_jax.training.interruption import StopSignals
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.placement import OneDevice, OnMesh
from calm_jax.training.plan import Plan, TrainResult
from calm_jax.training.run import Run
from calm_jax.training.run_directory import RowLogger, RunDirectory

Batch = Mapping[str, np.ndarray]
Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
LayerWeights = Sequence[float] | Callable[[int], Sequence[float]]


def train(
  config: T5Config,
  batches: Batches,
  *,
  optimizer: Optimizer,
  num_steps: int,
  model_dir: str | os.PathLike,
  layer_weights: LayerWeights = weights_lib.linear_weights,
  z_loss: float = 1e-4,
  label_smoothing: float = 0.0,
  loss_normalizer: float | None = None,
  num_microbatches: int = 1,
  evaluators: Mapping[str, Evaluator] | None = None,
  best_metric: str = 'validation_loss',
  best_mode: str = 'min',
  log_every: int = 50,
  eval_every: int = 500,
  checkpoint_every: int = 500,
  max_to_keep: int = 2,
  patience: int | None = None,
  max_minutes: float | None = None,
  seed: int = 0,
  context: Mapping[str, Any] | None = None,
  initial_params: Params | None = None,
  loggers: Sequence[RowLogger] = (),
  mesh: jax.sharding.Mesh | None = None,
  partitioning: str = 'data_parallel',
) -> TrainResult:
  """Trains until `num_steps`, `max_minutes` or `patience` ends it.

  Writes to `model_dir`: train_log.jsonl, parameters.txt, checkpoint_<step>/
  and, by `best_metric`, best/checkpoint_<step>/ (parameters only).

  Args:
    config: the model.
    batches: dicts of NumPy arrays with T5X's keys (see `step.BATCH_KEYS`), one
      per step; or a function from the number of batches already consumed to the
      batches from there on. Given an iterable, a resumed run draws and discards
      the batches it has consumed before. With several processes, each gives its
      own rows, as many in as many batches as the others.
    optimizer: from `optimizer.adafactor` or `optimizer.adamw`.
    num_steps: steps of the whole run.
    model_dir: where to write, and to resume from.
    layer_weights: one weight per decoder layer, or a function of their number.
    z_loss: coefficient of log(Z)^2.
    label_smoothing: in [0, 1).
    loss_normalizer: see `LossSettings`.
    num_microbatches: see `step.make_train_step`.
    evaluators: name -> function of parameters and step that returns metrics.
    best_metric: the metric that picks the best checkpoint.
    best_mode: 'min' or 'max'.
    log_every: steps between log lines.
    eval_every: steps between evaluations; there is one at the end as well.
    checkpoint_every: steps between checkpoints; also one at the end.
    max_to_keep: checkpoints kept besides the best one.
    patience: stop after this many evaluations without a new best.
    max_minutes: stop after this time, earlier starts of the run included.
    seed: of initialisation and dropout.
    context: saved with checkpoints; see `native.save`.
    initial_params: parameters to start from instead of random ones.
    loggers: called with every row that goes to train_log.jsonl, in the first
      process.
    mesh: devices to train on together, from `sharding.make_mesh`; None for the
      default one. A run may go on over another mesh than it was started on.
    partitioning: with a mesh, 'data_parallel' (every device holds all
      parameters) or 'fsdp' (they are shared out over the mesh axis 'data');
      the mesh axis 'model' splits heads, feed-forward layers and vocabulary
      under both.

  Raises:
    ValueError: for bad arguments, batches, or a `model_dir` of another run.
    SaveError: when a checkpoint could not be written, at a later step.
    FloatingPointError: when the loss becomes NaN or infinite.
    KeyboardInterrupt, SystemExit: after a signal, with a checkpoint saved.
  """
  plan = Plan(
    num_steps=num_steps,
    log_every=log_every,
    eval_every=eval_every,
    checkpoint_every=checkpoint_every,
    max_to_keep=max_to_keep,
    patience=patience,
    max_minutes=max_minutes,
    best_metric=best_metric,
    best_mode=best_mode,
  )
  layers = config.num_decoder_layers
  if callable(layer_weights):
    layer_weights = layer_weights(layers)
  settings = losses.LossSettings(
    weights_lib.check_layer_weights(layer_weights, layers),
    z_loss=z_loss,
    label_smoothing=label_smoothing,
    loss_normalizer=loss_normalizer,
  )
  train_step = step_lib.make_train_step(
    config, optimizer, settings=settings, num_microbatches=num_microbatches
  )
  placement = OneDevice() if mesh is None else OnMesh(mesh, partitioning)
  run = Run(
    config,
    plan,
    optimizer=optimizer,
    evaluators=dict(evaluators or {}),
    directory=RunDirectory(
      model_dir,
      config,
      context=context,
      max_to_keep=max_to_keep,
      loggers=loggers,
    ),
    placement=placement,
  )

  def make_state(params):
    return step_lib.init_train_state(
      config, optimizer, seed=seed, params=params
    )

  with placement.scope():
    run.start(make_state, initial_params, context)
    with StopSignals() as signals:
      return run.loop(train_step, _from(batches, run.step), signals)


def _from(batches: Batches, consumed: int) -> Iterator[Batch]:
  """Returns the batches after the first `consumed`."""
  if callable(batches):
    return iter(batches(consumed))
  iterator = iter(batches)
  for _ in range(consumed):
    if next(iterator, None) is None:
      break
  return iterator

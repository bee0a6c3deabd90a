"""Trains a gate of encoder layers: when may an input leave?

  python -m calm_jax.cli.train_encoder_gate \
    --gin_file=runs/train_encoder_gate.gin --gin_file=tasks/banking77.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/banking77

The run has heads of its encoder layers (train_encoder_heads); model and heads
stay as they are. The gate reads the states that a head reads and says whether
the input may leave: by default it is PALBERT's Lambda head, for
exits.QuantileExit; with --gin.GATE_TARGET=cost_aware
--gin.INPUTS="('logits','layer')" JEI-DNN's gate, for exits.ConfidenceExit. It
goes to MODEL_DIR/encoder_gate with its log and its configuration. Certify with
calibrate_encoder, EXIT_RULE='@exits.QuantileExit()' or
MEASURE='@runs.load_encoder_gate()'.

With --gin.JOINT_HEADS=joint_heads the heads are trained on with the gate, by
what the gate lets through, as JEI-DNN and PALBERT train them; they go to that
folder, for calibrate_encoder's ENCODER_HEADS, and the old ones stay.
"""

import functools
from typing import Any

from calm_jax import data as datasets
from calm_jax import runs, training
from calm_jax.cli import gin_runner, joint_gates
from calm_jax.cli.part_rows import TaskRows
from calm_jax.cli.part_training import train_part


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  data: datasets.DataPlan,
  target: Any = 'quantile',
  shape: training.GateShape | None = None,
  heads: training.JudgedHeads | None = None,
  name: str = 'encoder_gate',
  seed: int = 0,
) -> training.TrainResult:
  """Trains on the split 'train'.

  Args:
    model_dir: a run directory with heads.
    task: the Task that they were trained on.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    data: how the Task's examples become batches; their lengths are those that
      the model was trained with.
    target: an object such as `training.Quantile()`, or one by name.
    shape: hidden units, inputs, whether exits share the gate.
    heads: the folder of the heads in `model_dir`, and whether they are trained
      on with the gate; `training.JudgedHeads()` if None.
    name: of the folder in `model_dir` that the gate goes to.
    seed: of the first weights and of the data order.

  Returns:
    How training ended.
  """
  target = training.get_gate_target(target)
  heads = training.JudgedHeads() if heads is None else heads
  directory = training.gate_directory(model_dir, name)
  make_stage = training.encoder_gate_stage
  if heads.trained_on is not None:
    directory = joint_gates.training_directory(model_dir, name, heads)
    make_stage = functools.partial(
      training.encoder_joint_stage, boosted=heads.boosted
    )
  loaded_heads = runs.load_encoder_heads(model_dir, name=heads.folder)
  labels = runs.load_class_labels(model_dir, name=heads.folder)
  trained = train_part(
    lambda run: make_stage(
      run.config,
      run.params,
      loaded_heads,
      optimizer,
      labels=labels,
      target=target,
      shape=training.GateShape() if shape is None else shape,
      seed=seed,
    ),
    TaskRows(data),
    job='train_encoder_gate',
    model_dir=model_dir,
    directory=directory,
    task=task,
    plan=plan,
    seed=seed,
  )
  if heads.trained_on is not None:
    joint_gates.write_parts(model_dir, trained, labels, gate=name, heads=heads)
  return trained.result


if __name__ == '__main__':
  gin_runner.main('train_encoder_gate', one_process=True)

"""Trains small twins of a model that stays as it is, from gin files.

  python -m calm_jax.cli.train_twins --gin_file=runs/train_twins.gin \
    --gin_file=tasks/input_lines.gin --gin.MODEL_DIR=runs/flan \
    --gin.INPUT_LINES=inputs.txt

Beside each feed-forward block of the decoder of the model in MODEL_DIR (its
best checkpoint if there is one) a narrow one learns to stand in for it. The
model is teacher and frozen: it says something to each input, and is held to
that while it is drawn at every token and layer which of the two blocks runs, or
none. No references are read, so a file of inputs is enough
(tasks/input_lines.gin); any other Task will do. The twins go to
MODEL_DIR/small_twins, with the model's outputs, their log, their configuration
and what some patterns of them keep of the model on the validation split.
Restarting the same command goes on from the last checkpoint and decodes nothing
twice. Decode and certify with policies/twins.gin.
"""

from typing import Any

from calm_jax import evaluation, records, training
from calm_jax.cli import gin_runner
from calm_jax.cli.outputs_training import InputPlan, OwnRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part
from calm_jax.small_twins import NONE, OWN, TWIN


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  inputs: InputPlan | None = None,
  layout: evaluation.BatchLayout | None = None,
  shape: training.TwinShape | None = None,
  name: str = 'small_twins',
  seed: int = 0,
) -> records.TwinEvaluation | None:
  """Trains on inputs of the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task; its targets are not read.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    inputs: which inputs; the defaults if None.
    layout: how they are decoded together; the defaults if None.
    shape: hidden units of each twin, and how often it runs in training.
    name: of the folder in `model_dir` that the twins go to.
    seed: of first weights, of the inputs drawn and of their order.

  Returns:
    What the twins keep; None for a Task without validation inputs.
  """
  trained = train_part(
    lambda run: training.twin_stage(
      run.config, run.params, optimizer, shape=shape, seed=seed
    ),
    OwnRows(inputs, layout),
    job='train_twins',
    model_dir=model_dir,
    directory=training.twin_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(trained, _measure)


def _measure(trained: TrainedForRun) -> records.TwinEvaluation:
  """Returns what twins keep in half of the layers or all, and none at all."""
  config, batches = trained.run.config, trained.validation
  layers = config.num_decoder_layers
  twins = training.twins_of(trained.result.params)
  half = layers // 2
  units = {NONE: 0, OWN: config.mlp_dim, TWIN: twins.hidden_units}
  patterns = dict.fromkeys(
    (
      (NONE,) * layers,
      (TWIN,) * layers,
      (TWIN,) * half + (OWN,) * (layers - half),
      (OWN,) * (layers - half) + (TWIN,) * half,
      (OWN,) * layers,
    )
  )
  found = {
    choices: training.evaluate_twins(
      config, trained.run.params, twins, batches, choices
    )
    for choices in patterns
  }
  return records.TwinEvaluation(
    num_tokens=int(found[(OWN,) * layers].num_tokens),
    hidden_units=twins.hidden_units,
    patterns=tuple(
      records.TwinPattern(
        choices=choices,
        hidden_units=sum(units[choice] for choice in choices),
        agreement=float(sums.rates()[1]),
        divergence=float(sums.rates()[0]),
      )
      for choices, sums in found.items()
    ),
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_twins', one_process=True)

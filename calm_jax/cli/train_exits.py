"""Trains adapters for the exits of a model that stays as it is, from gin files.

  python -m calm_jax.cli.train_exits --gin_file=runs/train_exits.gin \
    --gin_file=tasks/input_lines.gin --gin.MODEL_DIR=runs/flan \
    --gin.INPUT_LINES=inputs.txt

The model in MODEL_DIR (its best checkpoint if there is one) is teacher and
frozen: it says something to each input, and its early layers learn, each
through a small adapter, to say what its last layer says. No references are
read, so a file of inputs is enough (tasks/input_lines.gin); any other Task will
do. The adapters go to MODEL_DIR/exit_adapters, with the model's outputs, their
log, their configuration and what they change on the validation split.
Restarting the same command goes on from the last checkpoint and decodes nothing
twice; with other inputs, or another MAX_INPUTS or seed, it is refused before
anything is written. Decode and certify with policies/adapted_exits.gin.
"""

from typing import Any

from calm_jax import evaluation, records, training
from calm_jax.cli import gin_runner
from calm_jax.cli.outputs_training import InputPlan, OwnRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part
from calm_jax.exit_adapters import ExitAdapters


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  inputs: InputPlan | None = None,
  layout: evaluation.BatchLayout | None = None,
  rank: int | None = 16,
  feed_forward: int | None = None,
  name: str = 'exit_adapters',
  seed: int = 0,
) -> records.ExitAdapterEvaluation | None:
  """Trains on inputs of the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task; its targets are not read.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    inputs: which inputs; the defaults if None.
    layout: how they are decoded together; the defaults if None.
    rank: of the adapters; None for a scale per channel alone.
    feed_forward: hidden units of a feed-forward layer per exit, with a rank of
      None; None without.
    name: of the folder in `model_dir` that the adapters go to.
    seed: of first weights, of the inputs drawn and of their order.

  Returns:
    What they change; None for a Task without validation inputs.
  """
  trained = train_part(
    lambda run: training.exit_adapter_stage(
      run.config,
      run.params,
      optimizer,
      rank=rank,
      feed_forward=feed_forward,
      seed=seed,
    ),
    OwnRows(inputs, layout),
    job='train_exits',
    model_dir=model_dir,
    directory=training.exit_adapter_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(trained, _measure)


def _measure(trained: TrainedForRun) -> records.ExitAdapterEvaluation:
  """Returns what adapters change, layer by layer."""
  config, batches = trained.run.config, trained.validation
  before, after = (
    training.evaluate_exit_adapters(
      config, trained.run.params, adapters, batches
    )
    for adapters in (
      ExitAdapters.identity(config.num_decoder_layers, config.embed_dim),
      training.exit_adapters_of(trained.result.params),
    )
  )
  apart_before, right_before = map(_numbers, before.rates())
  apart, right = map(_numbers, after.rates())
  return records.ExitAdapterEvaluation(
    num_tokens=int(before.num_tokens),
    agreements_before=right_before,
    agreements=right,
    divergences_before=apart_before,
    divergences=apart,
    **trained.about(),
  )


def _numbers(column: Any) -> tuple[float, ...]:
  return tuple(map(float, column))


if __name__ == '__main__':
  gin_runner.main('train_exits', one_process=True)

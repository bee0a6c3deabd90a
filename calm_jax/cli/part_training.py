"""What the jobs share that train a part for a model that stays as it is."""

import dataclasses
from collections.abc import Callable
from typing import Any

from calm_jax import data as datasets
from calm_jax import evaluation, runs, training
from calm_jax.cli import gin_runner, jobs, own_outputs, part_rows


@dataclasses.dataclass(frozen=True)
class TrainedForRun:
  """What was trained, and what it was trained for.

  Attributes:
    run: the model's run.
    result: of training.
    validation: batches of the split 'validation'; None if inputs have none.
    task_name: the Task's.
  """

  run: runs.LoadedRun
  result: training.TrainResult
  validation: part_rows.Batches | None
  task_name: str


def train_for_run(
  make_stage: Callable[[runs.LoadedRun], training.Stage],
  *,
  model_dir: str,
  directory: str,
  config_name: str,
  task: Any,
  plan: training.Plan,
  data: datasets.DataPlan,
  seed: int,
  outputs_in: str | None = None,
) -> TrainedForRun:
  """Trains a part on the split 'train' of a Task.

  Args:
    make_stage: from the model's run to what is trained.
    model_dir: the model's run directory.
    directory: the part's.
    config_name: the name of the operative configuration there.
    task: the Task.
    plan: how many steps, and when to log and save.
    data: how the Task's examples become batches; their lengths are those that
      the model was trained with.
    seed: of the data order.
    outputs_in: the folder of exit adapters where `train_exits` keeps what the
      model itself says to the Task's inputs, to learn from that; None for the
      Task's targets.
  """
  if outputs_in is None:
    datasets.refuse_inputs_alone(task, job=config_name.removesuffix('.gin'))
  loaded, name = jobs.load_run(model_dir, task), datasets.as_task(task).name
  data = dataclasses.replace(data, feature_lengths=loaded.feature_lengths)
  data = jobs.as_begun(data, directory)
  if outputs_in is None:
    rows = part_rows.rows_of_task(task, data, seed=seed)
  else:
    outputs = own_outputs.OwnOutputs(
      loaded=loaded,
      task=task,
      model_dir=model_dir,
      directory=outputs_in,
      layout=evaluation.BatchLayout(),
      seed=seed,
    )
    rows = part_rows.rows_of_outputs(outputs, data)

  def batches(skip):
    # Asked for once the directory is known to be of this very run.
    gin_runner.write_operative_config(directory, config_name)
    return rows.train(skip)

  result = training.train(
    make_stage(loaded),
    batches,
    plan=plan,
    model_dir=directory,
    seen_rows=lambda: part_rows.seen_rows(task),
    context={'task': name, 'seed': seed, **data.context()},
  )
  validation = None if rows.validation is None else rows.validation()
  return TrainedForRun(loaded, result, validation, name)

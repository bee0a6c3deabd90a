"""What the jobs share that train a part for a model that stays as it is."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from calm_jax import data as datasets
from calm_jax import records, runs, training
from calm_jax.cli import gin_runner, jobs


@dataclasses.dataclass(frozen=True)
class TrainedForRun:
  """What was trained, and what it was trained for.

  Attributes:
    run: the model's run.
    result: of training.
    validation: batches of the split 'validation'.
    task_name: the Task's.
  """

  run: runs.LoadedRun
  result: training.TrainResult
  validation: Iterator[Mapping[str, Any]]
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
  """
  datasets.refuse_inputs_alone(task, job=config_name.removesuffix('.gin'))
  loaded = jobs.load_run(model_dir, task)
  seqio_task = datasets.as_task(task)
  data = dataclasses.replace(data, feature_lengths=loaded.feature_lengths)
  data = jobs.as_begun(data, directory)

  def batches(skip):
    # Asked for once the directory is known to be of this very run.
    gin_runner.write_operative_config(directory, config_name)
    return datasets.train_batches(seqio_task, data, seed=seed, skip=skip)

  result = training.train(
    make_stage(loaded),
    batches,
    plan=plan,
    model_dir=directory,
    seen_rows=lambda: records.TrainingRows(
      datasets.input_hashes(task, 'train'), np.zeros(0, np.uint64)
    ),
    context={'task': seqio_task.name, 'seed': seed, **data.context()},
  )
  validation = datasets.eval_batches(
    seqio_task,
    data.batch_size,
    feature_lengths=loaded.feature_lengths,
    split='validation',
    max_examples=data.eval_examples,
    inputs_cut=data.inputs_cut,
  )
  return TrainedForRun(loaded, result, validation, seqio_task.name)

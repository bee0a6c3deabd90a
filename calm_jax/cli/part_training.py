"""What the jobs share that train a part for a model that stays as it is."""

import dataclasses
import operator
import os
from collections.abc import Callable
from typing import Any, TypeVar

from calm_jax import data as datasets
from calm_jax import records, runs, training
from calm_jax.cli import gin_runner, jobs, outputs_training, part_rows
from calm_jax.cli.own_outputs import Part
from calm_jax.processes import speaking
from calm_jax.training.run_directory import check_same_run

Evaluation = TypeVar('Evaluation')


@dataclasses.dataclass(frozen=True)
class TrainedForRun:
  """What was trained, and what it was trained for.

  Attributes:
    run: the model's run.
    result: of training.
    validation: batches of the split 'validation'; None if inputs have none.
    task_name: the Task's.
    directory: the part's.
  """

  run: runs.LoadedRun
  result: training.TrainResult
  validation: Any
  task_name: str
  directory: str

  def about(self, **details: Any) -> dict[str, Any]:
    """Returns the fields that the evaluation of every part has.

    Args:
      **details: what its context says besides.
    """
    config, step = self.run.config, self.run.step
    return {
      'task': self.task_name,
      'split': 'validation',
      'steps': self.result.step,
      'context': jobs.run_context(config, checkpoint_step=step, **details),
    }


def train_part(
  make_stage: Callable[[runs.LoadedRun], training.Stage],
  rows: part_rows.TaskRows | outputs_training.OwnRows,
  *,
  job: str,
  model_dir: str,
  directory: str,
  task: Any,
  plan: training.Plan,
  seed: int,
  chosen_by: str | None = None,
) -> TrainedForRun:
  """Trains a part on the split 'train' of a Task.

  Args:
    make_stage: from the model's run to what is trained.
    rows: what it is trained on, and can be measured on.
    job: the name of its module; the operative configuration goes by it.
    model_dir: the model's run directory.
    directory: the part's.
    task: the Task.
    plan: how many steps, and when to log and save.
    seed: of what is drawn from the Task, and of the order.
    chosen_by: the split that something of the part is fitted on afterwards, so
      that it certifies nothing.
  """
  if rows.reads_targets:
    datasets.refuse_inputs_alone(task, job=job)
  loaded, name = jobs.load_run(model_dir, task), datasets.as_task(task).name
  part = Part(
    loaded=loaded,
    model_dir=model_dir,
    directory=directory,
    task=task,
    seed=seed,
  )
  found, stage = rows.of(part), make_stage(loaded)
  context = {'task': name, 'seed': seed, **found.context}
  if found.prepare is not None:
    # Before outputs of another run replace those that are there.
    check_same_run(directory, stage.config, {**context, **stage.context})
    # Before training, which lets signals wait for a step to end.
    found.prepare()

  def batches(skip):
    # Asked for once the directory is known to be of this very run.
    gin_runner.write_operative_config(directory, f'{job}.gin')
    return found.train(skip)

  result = training.train(
    stage,
    batches,
    plan=plan,
    model_dir=directory,
    seen_rows=lambda: part_rows.seen_rows(task, chosen_by=chosen_by),
    context=context,
  )
  validation = None if found.validation is None else found.validation()
  return TrainedForRun(loaded, result, validation, name, directory)


def measure_part(
  trained: TrainedForRun,
  measure: Callable[[TrainedForRun], Evaluation],
  *,
  directory: str | None = None,
  render: Callable[[Evaluation], str] = operator.methodcaller('describe'),
) -> Evaluation | None:
  """Measures a part on the split 'validation', writes that down and says it.

  Args:
    trained: the part.
    measure: from it to its evaluation.
    directory: where evaluation.json goes; that of training if None.
    render: the words for the evaluation; its own if not given.

  Returns:
    The evaluation; None for a Task without validation inputs.
  """
  directory = trained.directory if directory is None else directory
  if trained.validation is None:
    speaking.say(f'{directory}: no validation inputs, so nothing is measured')
    return None
  measured = measure(trained)
  records.write_json(os.path.join(directory, 'evaluation.json'), measured)
  speaking.say(render(measured))
  return measured

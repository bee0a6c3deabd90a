"""What jobs share that train a part on what the run's model itself says."""

import dataclasses
from typing import Any

from calm_jax import checkpoints, checks, records, training
from calm_jax import data as datasets
from calm_jax.cli import gin_runner, own_outputs, part_rows
from calm_jax.training.run_directory import check_same_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputPlan:
  """Which inputs the model is asked, and how its outputs are learnt from.

  Attributes:
    batch_size: rows of a training step.
    max_inputs: different inputs to learn from at most; None for all.
    eval_inputs: those of the validation split to measure on at most.
    length_buckets: (inputs, outputs) lengths that batches are padded to.
  """

  batch_size: int = 32
  max_inputs: int | None = 2000
  eval_inputs: int | None = 200
  length_buckets: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    """Raises ValueError for numbers below 1."""
    for name in ('batch_size', 'max_inputs', 'eval_inputs'):
      if (value := getattr(self, name)) is not None or name == 'batch_size':
        checks.check_whole(value, name, low=1)


def train_on_outputs(
  stage: training.Stage,
  outputs: own_outputs.OwnOutputs,
  inputs: InputPlan,
  plan: training.Plan,
  *,
  config_name: str,
) -> training.TrainResult:
  """Trains a part on what the model says to inputs of the split 'train'.

  Args:
    stage: what is trained.
    outputs: what the model says, decoded here unless it is kept already.
    inputs: which inputs, and how rows are put together.
    plan: how many steps, and when to log and save.
    config_name: the name of the operative configuration in the directory.
  """
  task, directory = outputs.task, outputs.directory
  context = _context(outputs, inputs)
  # Before outputs of another run replace those that are there.
  check_same_run(directory, stage.config, {**context, **stage.context})
  # Before training, which lets signals wait for a step to end.
  outputs.decode('train', inputs.max_inputs)

  def batches(skip):
    # Asked for once the directory is known to be of this very run.
    gin_runner.write_operative_config(directory, config_name)
    return outputs.batches(
      'train',
      inputs.batch_size,
      inputs.length_buckets,
      seed=outputs.seed,
      skip=skip,
    )

  return training.train(
    stage,
    batches,
    plan=plan,
    model_dir=directory,
    seen_rows=lambda: part_rows.seen_rows(task),
    context=context,
  )


def validation_batches(
  outputs: own_outputs.OwnOutputs, inputs: InputPlan
) -> list[Any] | None:
  """Returns what the model says to inputs of 'validation', in batches.

  None for a Task without that split.

  Args:
    outputs: what the model says, decoded here unless it is kept already.
    inputs: which inputs, and how rows are put together.
  """
  if 'validation' not in datasets.as_task(outputs.task).splits:
    return None
  outputs.decode('validation', inputs.eval_inputs)
  batches = outputs.batches(
    'validation',
    inputs.batch_size,
    inputs.length_buckets,
    shuffle=False,
    num_epochs=1,
  )
  return list(batches)


def _context(
  outputs: own_outputs.OwnOutputs, inputs: InputPlan
) -> dict[str, Any]:
  """Returns what a restart must give again."""
  context = {
    'task': datasets.as_task(outputs.task).name,
    'seed': outputs.seed,
    **records.to_jsonable(dataclasses.asdict(inputs)),
  }
  step = checkpoints.latest_step(outputs.directory)
  if step is not None:
    path = checkpoints.checkpoint_path(outputs.directory, step)
    if 'inputs_hash' not in checkpoints.read_metadata(path)['context']:
      # Begun when runs did not say it yet.
      return context
  # A restart skips what it has seen: of other inputs it would skip others.
  return {**context, 'inputs_hash': outputs.inputs_hash('train')}

"""What a part of a finished model is trained and measured on.

A Task's inputs and targets; or its inputs and what the model itself says to
them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from calm_jax import data as datasets
from calm_jax import records
from calm_jax.cli import jobs
from calm_jax.cli.own_outputs import OwnOutputs, Part

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartRows:
  """What a part is trained and measured on.

  Attributes:
    train: from a number of batches to those after them, without end.
    validation: to batches, once through; None if there is nothing to measure
      on.
    context: JSON values that a restart must give again.
    prepare: called once before `train`, or None.
  """

  train: Callable[[int], Iterator[Batch]]
  validation: Callable[[], Iterable[Batch]] | None
  context: Mapping[str, Any]
  prepare: Callable[[], None] | None = None


@dataclasses.dataclass(frozen=True)
class TaskRows:
  """Inputs of a Task and its targets, or what the model says, kept already.

  Attributes:
    data: how examples become batches; their lengths are those that the model
      was trained with.
    outputs_in: the folder of exit adapters where `train_exits` keeps what the
      model itself says to the Task's inputs, to learn from that; None for the
      Task's targets.
  """

  data: datasets.DataPlan
  outputs_in: str | None = None

  @property
  def reads_targets(self) -> bool:
    """Whether the Task must have targets."""
    return self.outputs_in is None

  def of(self, part: Part) -> PartRows:
    """Returns the rows of a part.

    Raises:
      FileNotFoundError: if outputs are missing.
      ValueError: if they are of another model or other inputs, or for a plan
        that packs them.
    """
    lengths = part.loaded.feature_lengths
    data = dataclasses.replace(self.data, feature_lengths=lengths)
    data = jobs.as_begun(data, part.directory)
    if self.outputs_in is None:
      return _rows_of_targets(part, data)
    if data.pack:
      raise ValueError(
        f'what {self.outputs_in} keeps comes in rows of one input each, and '
        'data.DataPlan.pack is True: leave it out'
      )
    part = dataclasses.replace(part, directory=self.outputs_in)
    outputs = OwnOutputs(part)
    for split in ('train', 'validation') if part.has_validation else ('train',):
      outputs.check(split)
    return rows_of_outputs(outputs, data, context=data.context())


def _rows_of_targets(part: Part, data: datasets.DataPlan) -> PartRows:
  """Returns inputs and targets of a Task."""
  task = datasets.as_task(part.task)

  def once_through():
    return datasets.eval_batches(
      task,
      data.batch_size,
      feature_lengths=data.feature_lengths,
      split='validation',
      max_examples=data.eval_examples,
      inputs_cut=data.inputs_cut,
    )

  return PartRows(
    train=lambda skip: datasets.train_batches(
      task, data, seed=part.seed, skip=skip
    ),
    validation=once_through if part.has_validation else None,
    context=data.context(),
  )


def rows_of_outputs(
  outputs: OwnOutputs,
  plan: Any,
  *,
  context: Mapping[str, Any],
  prepare: Callable[[str], None] = lambda split: None,
) -> PartRows:
  """Returns inputs and what the model says to them.

  Args:
    outputs: where that is kept.
    plan: whose batch size and buckets batches have.
    context: JSON values that a restart must give again.
    prepare: called with a split before it is read.
  """
  part, shape = outputs.part, (plan.batch_size, plan.length_buckets)

  def once_through():
    prepare('validation')
    order = {'shuffle': False, 'num_epochs': 1}
    return list(outputs.batches('validation', *shape, **order))

  return PartRows(
    train=lambda skip: outputs.batches(
      'train', *shape, seed=part.seed, skip=skip
    ),
    validation=once_through if part.has_validation else None,
    context=context,
    prepare=lambda: prepare('train'),
  )


def seen_rows(
  task: Any, *, chosen_by: str | None = None
) -> records.TrainingRows:
  """Returns the inputs that a part is, or may be, trained and chosen on.

  Args:
    task: the Task.
    chosen_by: the split that something is fitted on when training ends.
  """
  chosen = np.zeros(0, np.uint64)
  if chosen_by is not None and chosen_by in datasets.as_task(task).splits:
    chosen = datasets.input_hashes(task, chosen_by)
  return records.TrainingRows(datasets.input_hashes(task, 'train'), chosen)

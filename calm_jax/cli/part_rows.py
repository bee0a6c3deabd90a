"""What a part of a finished model is trained and measured on.

A Task's inputs and targets; or its inputs and what the model itself says to
them, where `train_exits` has kept that.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from calm_jax import data as datasets
from calm_jax import records
from calm_jax.cli import own_outputs

Batches = Iterator[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class PartRows:
  """What a part is trained and measured on.

  Attributes:
    train: from a number of batches to those after them, without end.
    validation: to batches, once through; None if there is nothing to measure
      on.
  """

  train: Callable[[int], Batches]
  validation: Callable[[], Batches] | None


def rows_of_task(task: Any, data: datasets.DataPlan, *, seed: int) -> PartRows:
  """Returns inputs and targets of a Task.

  Args:
    task: the Task.
    data: how examples become batches, with the lengths of the model.
    seed: of their order.
  """
  task = datasets.as_task(task)
  return PartRows(
    train=lambda skip: datasets.train_batches(task, data, seed=seed, skip=skip),
    validation=lambda: datasets.eval_batches(
      task,
      data.batch_size,
      feature_lengths=data.feature_lengths,
      split='validation',
      max_examples=data.eval_examples,
      inputs_cut=data.inputs_cut,
    ),
  )


def rows_of_outputs(
  outputs: own_outputs.OwnOutputs, data: datasets.DataPlan
) -> PartRows:
  """Returns inputs and what the model says to them, decoded already.

  Args:
    outputs: that are kept; their seed is that of the order.
    data: whose batch size and buckets batches have.

  Raises:
    FileNotFoundError: if outputs are missing.
    ValueError: if they are of another model or other inputs, or for a plan that
      packs them.
  """
  if data.pack:
    raise ValueError(
      f'what {outputs.directory} keeps comes in rows of one input each, and '
      'data.DataPlan.pack is True: leave it out'
    )
  measures = 'validation' in datasets.as_task(outputs.task).splits
  for split in ('train', 'validation') if measures else ('train',):
    outputs.check(split)

  def batches(split, **order):
    return outputs.batches(split, data.batch_size, data.length_buckets, **order)

  def once_through():
    return batches('validation', shuffle=False, num_epochs=1)

  return PartRows(
    train=lambda skip: batches('train', seed=outputs.seed, skip=skip),
    validation=once_through if measures else None,
  )


def seen_rows(task: Any) -> records.TrainingRows:
  """Returns the inputs that a part is, or may be, trained on."""
  return records.TrainingRows(
    datasets.input_hashes(task, 'train'), np.zeros(0, np.uint64)
  )

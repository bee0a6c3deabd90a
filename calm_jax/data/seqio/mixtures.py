"""Mixtures of Tasks by a gin-friendly definition.

Training draws from the Tasks at their rates. Evaluation of a mixture reads the
Tasks one after the other, every example once; to score them one by one, give
the Tasks themselves. Calibration wants one Task: a certificate speaks about one
population.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from calm_jax.data.seqio.tasks import as_task, register_once_as
from calm_jax.data.seqio.tensorflow_setup import seqio


@dataclasses.dataclass(frozen=True)
class MixtureTask:
  """A seqio Mixture of Tasks that share a vocabulary.

  Each Task keeps its own prefix; the mixture has none, so that whoever decodes
  texts with a model trained on it writes the prefix in front of them.

  Attributes:
    name: the Mixture's name.
    tasks: definitions with `register()`, seqio Tasks, or names of such.
    rates: how often each Task is drawn, above 0, in any unit; if None, in
      proportion to the rows of their train splits.
  """

  name: str
  tasks: Sequence[Any]
  rates: Sequence[float] | None = None

  def __post_init__(self):
    object.__setattr__(self, 'tasks', tuple(self.tasks))
    if not self.tasks:
      raise ValueError(f'Mixture {self.name!r} has no tasks.')
    if self.rates is None:
      return
    object.__setattr__(self, 'rates', tuple(self.rates))
    if len(self.rates) != len(self.tasks):
      raise ValueError(
        f'Mixture {self.name!r} has {len(self.tasks)} tasks and '
        f'{len(self.rates)} rates; give one rate per task.'
      )
    for rate in self.rates:
      if not (math.isfinite(rate) and rate > 0):
        raise ValueError(
          f'Mixture {self.name!r} has the rate {rate}; rates must be above 0. '
          'Leave out a task that is not to be drawn.'
        )

  def register(self):
    """Registers the Tasks and the Mixture, once, and returns the Mixture.

    Raises:
      ValueError: if the name is taken, a Task occurs twice, or vocabularies
        differ.
    """
    return register_once_as(self, seqio.MixtureRegistry, self._make)

  def _make(self):
    tasks = [as_task(task) for task in self.tasks]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
      raise ValueError(f'Mixture {self.name!r} has a task twice: {names}.')
    first = tasks[0].output_features['inputs'].vocabulary
    for task in tasks[1:]:
      other = task.output_features['inputs'].vocabulary
      if other != first:
        raise ValueError(
          f'Mixture {self.name!r}: {task.name} has the vocabulary {other}, '
          f'{names[0]} has {first}; all tasks must share one.'
        )
    rates = self.rates or [_train_rows(task) for task in tasks]
    return seqio.MixtureRegistry.add(
      self.name,
      [(name, float(rate)) for name, rate in zip(names, rates, strict=True)],
    )


def _train_rows(task) -> int:
  rows = task.num_input_examples('train')
  if not rows:
    raise ValueError(
      f'{task.name} does not say how many train rows it has; give `rates`.'
    )
  return rows

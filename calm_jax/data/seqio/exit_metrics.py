"""Depth among a Task's metrics, for Evaluators of jobs that are not ours.

`<task>_exits` is the same Task whose metrics read auxiliary values: seqio's
Evaluator then decodes once, with them, logs the mean number of layers beside
the quality, and writes the exit layers of every output to its JSONL file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from calm_jax.data.seqio.tasks import as_task
from calm_jax.data.seqio.tensorflow_setup import seqio


def with_exit_metrics(task: Any):
  """Registers and returns `<task>_exits`; a Mixture is returned as it is.

  Args:
    task: a seqio Task, its name, or a definition with `register()`.
  """
  task = as_task(task)
  if isinstance(task, seqio.Mixture):
    return task
  name = f'{task.name}_exits'
  if name in seqio.TaskRegistry.names():
    return seqio.TaskRegistry.get(name)
  return seqio.TaskRegistry.add(
    name,
    source=task.source,
    preprocessors=task.preprocessors,
    output_features=task.output_features,
    postprocess_fn=task.postprocess_fn,
    metric_fns=[
      *map(_with_aux_values, task.predict_metric_fns),
      *task.predict_with_aux_metric_fns,
      *task.score_metric_fns,
      mean_exit_layer,
    ],
  )


def mean_exit_layer(
  targets: Sequence[Any],
  predictions: Sequence[Any],
  aux_values: dict[str, Sequence[Any]],
) -> dict[str, float]:
  """Returns the mean number of decoder layers per decoded token.

  Args:
    targets: not read.
    predictions: not read.
    aux_values: `exit_layers` [N, T], -1 where nothing was decoded.
  """
  del targets, predictions
  exit_layers = np.asarray(aux_values['exit_layers'])
  decoded = exit_layers[exit_layers > 0]
  return {'mean_exit_layer': float(decoded.mean()) if decoded.size else np.nan}


def _with_aux_values(metric_fn: Callable) -> Callable:
  # seqio looks at the parameter names, and decodes twice if they differ.
  def metric(targets, predictions, aux_values):
    del aux_values
    return metric_fn(targets, predictions)

  metric.__name__ = getattr(metric_fn, '__name__', 'metric')
  return metric

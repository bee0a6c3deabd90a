"""Calibration as a seqio evaluation Task of its own.

`<task>_calibration` has the source, preprocessors and features of the Task it
calibrates, and one metric, which receives each example's losses per setting as
auxiliary values. `seqio.Evaluator` runs it like any other evaluation: one
predict-with-aux pass, results in its JSONL log.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax.data.seqio.batches import example_batches
from calm_jax.data.seqio.tasks import as_task, inputs_cut_of
from calm_jax.data.seqio.tensorflow_setup import seqio
from calm_jax.data.seqio.token_datasets import in_order

# Batches -> tokens int [N, T] and losses float [N, J].
Predict = Callable[[Sequence[dict]], tuple[np.ndarray, np.ndarray]]
# Losses float [N, J] -> numbers for the evaluation's log.
Metric = Callable[[np.ndarray], Mapping[str, float]]


def run_calibration_task(
  task: Any,
  *,
  predict: Predict,
  metric: Metric,
  batch_size: int,
  feature_lengths: Mapping[str, int],
  log_dir: str | None,
  split: str = 'calibration',
  max_examples: int | None = None,
) -> dict[str, float]:
  """Registers `<task>_calibration` and evaluates it with `seqio.Evaluator`.

  Args:
    task: a seqio Task, its name, or a definition with `register()`.
    predict: decodes batches (the dicts of `eval_batches`) and returns tokens
      and the losses of every example at every setting, NaN where testing
      stopped.
    metric: what to make of the losses of all examples.
    batch_size: rows of a batch.
    feature_lengths: longest inputs and targets in tokens.
    log_dir: where seqio writes its log; None for no log.
    split: the split to read.
    max_examples: use only the first so many examples; None for all.

  Returns:
    What `metric` returned.

  Raises:
    ValueError: if the split does not exist, or for a Mixture.
  """
  task = as_task(task)
  if isinstance(task, seqio.Mixture):
    raise ValueError(
      f'{task.name} is a mixture, and a certificate speaks about one task; '
      f'calibrate one of {[part.name for part in task.tasks]}.'
    )
  if split not in task.splits:
    raise ValueError(
      f'{task.name} has no split {split!r}; it has {sorted(task.splits)}'
    )
  results: dict[str, float] = {}

  def calibration(targets, predictions, aux_values):
    del targets, predictions
    results.update(metric(np.asarray(aux_values['losses'], np.float64)))
    return dict(results)

  name = _register(task, calibration)
  evaluator = seqio.Evaluator(
    name,
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split=split,
    sequence_length=dict(feature_lengths),
    num_examples=max_examples,
    logger_cls=[] if log_dir is None else [seqio.JSONLogger],
    log_dir=None if log_dir is None else os.path.abspath(log_dir),
    # In this thread, so that an error in the metric is raised here.
    async_compute_metrics=False,
  )

  def predict_with_aux(dataset):
    # The Evaluator's dataset says which examples and in which order; whole, and
    # with the texts that a loss against references needs, they are in the Task.
    indices = [int(index) for index, _ in dataset.as_numpy_iterator()]
    examples = in_order(task, split).take(max(indices) + 1).as_numpy_iterator()
    examples = list(examples)
    batches = list(
      example_batches(
        [examples[index] for index in indices],
        batch_size,
        feature_lengths,
        inputs_cut=inputs_cut_of(task),
      )
    )
    tokens, losses = predict(batches)
    predictions = list(zip(indices, tokens.tolist(), strict=True))
    return predictions, {'losses': losses.tolist()}

  evaluator.evaluate(
    compute_metrics=True, step=0, predict_with_aux_fn=predict_with_aux
  )
  return results


def _register(task, metric_fn) -> str:
  """Registers the calibration Task and returns its name."""
  name = f'{task.name}_calibration'
  if name in seqio.TaskRegistry.names():
    # The same definition with the metric of an earlier run in this process.
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=task.source,
    preprocessors=task.preprocessors,
    output_features=task.output_features,
    metric_fns=[metric_fn],
  )
  return name

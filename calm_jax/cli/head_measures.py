"""What jobs say of heads of encoder layers, trained ones or words."""

from collections.abc import Iterable, Mapping
from typing import Any

from calm_jax import data, records, runs, training
from calm_jax.cli import jobs


def measure_heads(
  loaded: runs.LoadedRun,
  heads: Any,
  labels: data.ClassLabels,
  batches: Iterable[Mapping[str, Any]],
  *,
  task_name: str,
  steps: int = 0,
  with_encoder: bool = False,
) -> records.EncoderHeadEvaluation:
  """Returns how heads do on the validation split, and their temperatures.

  Args:
    loaded: the run that they are of.
    heads: the heads.
    labels: their classes.
    batches: of that split.
    task_name: the Task's.
    steps: how long they were trained.
    with_encoder: whether the encoder was trained with them.
  """
  found = training.class_logits(
    loaded.config, loaded.params, heads, batches, labels=labels
  )
  fitted = training.fit_class_temperatures(found)
  columns = (
    map(float, found.accuracies),
    map(float, found.agreements),
    fitted.before,
    fitted.temperatures,
    fitted.after,
  )
  return records.EncoderHeadEvaluation(
    task=task_name,
    split='validation',
    num_examples=len(found.classes),
    num_classes=len(labels.texts),
    steps=steps,
    with_encoder=with_encoder,
    layers=tuple(
      records.EncoderHeadLayer(*row) for row in zip(*columns, strict=True)
    ),
    context=jobs.run_context(loaded.config, checkpoint_step=loaded.step),
  )

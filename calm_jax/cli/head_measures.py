"""What jobs say of heads of encoder layers, trained ones or words."""

from collections.abc import Iterable, Mapping
from typing import Any

from calm_jax import data, records, runs, training
from calm_jax.array_types import Params
from calm_jax.cli.part_training import TrainedForRun


def measure_heads(
  run: runs.LoadedRun,
  heads: Any,
  labels: data.ClassLabels,
  batches: Iterable[Mapping[str, Any]],
  *,
  about: Mapping[str, Any],
  params: Params | None = None,
) -> records.EncoderHeadEvaluation:
  """Returns how heads do on the validation split, and their temperatures.

  Args:
    run: the run that they are of.
    heads: the heads.
    labels: their classes.
    batches: of that split.
    about: the fields that evaluations of parts share, `TrainedForRun.about()`.
    params: of the model whose encoder was trained with them; the run's if None.
  """
  with_encoder = params is not None
  found = training.class_logits(
    run.config,
    run.params if params is None else params,
    heads,
    batches,
    labels=labels,
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
    num_examples=len(found.classes),
    num_classes=len(labels.texts),
    with_encoder=with_encoder,
    layers=tuple(
      records.EncoderHeadLayer(*row) for row in zip(*columns, strict=True)
    ),
    **about,
  )


def measure_trained(
  trained: TrainedForRun,
  labels: data.ClassLabels,
  *,
  with_encoder: bool = False,
) -> records.EncoderHeadEvaluation:
  """Returns how heads do that were just trained.

  Args:
    trained: they, in the parameters of the result.
    labels: their classes.
    with_encoder: whether the encoder was trained with them.
  """
  tree, params = trained.result.params, None
  if with_encoder:
    params = training.with_trained_encoder(trained.run.params, tree)
  return measure_heads(
    trained.run,
    training.encoder_heads_of(tree),
    labels,
    trained.validation,
    about=trained.about(),
    params=params,
  )

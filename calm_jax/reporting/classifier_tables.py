"""Renders how the early-exit classifier does, exit by exit."""

from calm_jax import records
from calm_jax.reporting import columns, tables

_RATES = {
  'precision': 'precision',
  'recall': 'recall',
  'F1': 'f1',
}
_CONFIDENCES = {
  'mean confidence': 'mean_confidence',
  'cross-entropy': 'cross_entropy',
}


def classifier_table(
  *evaluations: records.ClassifierEvaluation,
) -> tables.Table:
  """Returns one row per exit: agreement, and rates of "don't exit".

  Args:
    *evaluations: one, or several of one model on the same tokens that differ in
      the loss that the classifier was trained with.

  Raises:
    ValueError: if several are not of the same tokens.
  """
  first = evaluations[0]
  for other in evaluations[1:]:
    for name in ('task', 'split', 'num_tokens', 'num_layers'):
      mine, its = getattr(first, name), getattr(other, name)
      if mine != its:
        raise ValueError(
          f'classifiers are compared on the same tokens; {name} is {mine!r} '
          f'and {its!r}'
        )
  return columns.without_empty_columns(
    tables.Table(
      header=(
        'exit',
        'agreement %',
        *_titles(evaluations, _RATES),
        'F1 of never exiting',
        *_titles(evaluations, _CONFIDENCES),
      ),
      rows=tuple(
        map(_cells, zip(*(one.layers for one in evaluations), strict=True))
      ),
      notes=(
        'agreement: target tokens whose most probable token is already that of '
        f'layer {first.num_layers}, of {first.num_tokens:,}.',
        'precision, recall, F1: of "don\'t exit" (confidence < 0.5) against '
        'tokens that do not agree yet.',
      ),
    )
  )


def _titles(evaluations, fields) -> list[str]:
  """Returns titles, which name the loss where there are several."""
  several = len(evaluations) > 1
  return [
    f'{one.loss}: {title}' if several else title
    for one in evaluations
    for title in fields
  ]


def _cells(layers: tuple[records.ClassifierLayer, ...]) -> tuple[str, ...]:
  """Returns the row of one exit."""

  def written(fields):
    return [
      tables.number(getattr(layer, field), 3)
      for layer in layers
      for field in fields.values()
    ]

  agreement = layers[0].agreement
  apart = 1.0 - agreement
  return (
    f'layer {layers[0].exit_layer}',
    tables.number(100 * agreement, 1),
    *written(_RATES),
    tables.number(2 * apart / (1.0 + apart), 3),
    *written(_CONFIDENCES),
  )


def render_classifier_text(evaluation: records.ClassifierEvaluation) -> str:
  """Renders the evaluation for a terminal."""
  return _render(evaluation, tables.as_text, '{}')


def render_classifier_markdown(evaluation: records.ClassifierEvaluation) -> str:
  """Renders the evaluation for a README."""
  return _render(evaluation, tables.as_markdown, '- {}')


def _render(evaluation, write, note_form: str) -> str:
  table = classifier_table(evaluation)
  title = (
    f'{evaluation.loss} loss, {evaluation.steps:,} steps, {evaluation.task} '
    f'{evaluation.split}'
  )
  return f'{title}\n\n{tables.with_notes(table, write, note_form)}'

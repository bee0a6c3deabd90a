"""Renders how the early-exit classifier does, exit by exit."""

from calm_jax import records
from calm_jax.reporting import tables


def classifier_table(evaluation: records.ClassifierEvaluation) -> tables.Table:
  """Returns one row per exit: agreement, and rates of "don't exit"."""
  rows = []
  for layer in evaluation.layers:
    apart = 1.0 - layer.agreement
    rows.append(
      (
        f'layer {layer.exit_layer}',
        tables.number(100 * layer.agreement, 1),
        tables.number(layer.precision, 3),
        tables.number(layer.recall, 3),
        tables.number(layer.f1, 3),
        tables.number(2 * apart / (1.0 + apart), 3),
        tables.number(layer.mean_confidence, 3),
        tables.number(layer.cross_entropy, 3),
      )
    )
  return tables.Table(
    header=(
      'exit',
      'agreement %',
      'precision',
      'recall',
      'F1',
      'F1 of never exiting',
      'mean confidence',
      'cross-entropy',
    ),
    rows=tuple(rows),
    notes=(
      'agreement: target tokens whose most probable token is already that of '
      f'layer {evaluation.num_layers}, of {evaluation.num_tokens:,}.',
      'precision, recall, F1: of "don\'t exit" (confidence < 0.5) against '
      'tokens that do not agree yet.',
    ),
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
  notes = '\n'.join(note_form.format(note) for note in table.notes)
  return f'{title}\n\n{write(table)}\n\n{notes}'

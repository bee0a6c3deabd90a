"""Renders how a gate does: exit by exit, and in layers."""

from calm_jax import records
from calm_jax.reporting import tables


def gate_table(evaluation: records.GateEvaluation) -> tables.Table:
  """Returns one row per measure: mean exit layers where few tokens disagree."""
  allowed = sorted({depth.allowed for depth in evaluation.depths})
  found = {
    (depth.measure, depth.allowed): depth.mean_exit_layer
    for depth in evaluation.depths
  }
  names = list(dict.fromkeys(depth.measure for depth in evaluation.depths))
  rows = [
    (
      name,
      *(tables.number(found[name, share], 2) for share in allowed),
      '',
    )
    for name in names
  ]
  for name, layers in (
    ('oracle, first layer that agrees', evaluation.first_agreeing),
    ('oracle, first from which all agree', evaluation.settled),
  ):
    rows.append((name, *('' for _ in allowed), tables.number(layers, 2)))
  return tables.Table(
    header=(
      'mean exit layer by',
      *(f'at {100 * share:g} %' for share in allowed),
      'no error',
    ),
    rows=tuple(rows),
    notes=(
      f'of {evaluation.num_tokens:,} target tokens, teacher forced, of '
      f'{evaluation.num_layers} layers.',
      'at 1 %: where so many tokens differ from those of the last layer; '
      'thresholds are chosen on these very tokens.',
    ),
  )


def gate_layers_table(evaluation: records.GateEvaluation) -> tables.Table:
  """Returns one row per exit: agreement, and rates of "don't exit"."""
  rows = tuple(
    (
      f'layer {layer.exit_layer}',
      tables.number(100 * layer.agreement, 1),
      tables.number(layer.precision, 3),
      tables.number(layer.recall, 3),
      tables.number(layer.mean_confidence, 3),
    )
    for layer in evaluation.layers
  )
  return tables.Table(
    header=('exit', 'agreement %', 'precision', 'recall', 'mean confidence'),
    rows=rows,
    notes=(
      'precision, recall: of "don\'t exit" (confidence < 0.5) against tokens '
      'that do not agree yet.',
    ),
  )


def render_gate_text(evaluation: records.GateEvaluation) -> str:
  """Renders the evaluation for a terminal."""
  title = (
    f'gate for {evaluation.target}, {evaluation.steps:,} steps, '
    f'{evaluation.task} {evaluation.split}'
  )
  parts = (
    tables.with_notes(table(evaluation), tables.as_text, '{}')
    for table in (gate_table, gate_layers_table)
  )
  return '\n\n'.join((title, *parts))

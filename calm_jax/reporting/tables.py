"""Renders an evaluation as tables: for a terminal, Markdown, and pages.

A table is first a grid of short texts with its columns explained, then written
out in one form or the other, so that all of them say the same.
"""

import dataclasses
import math
from collections.abc import Callable

from calm_jax import records

_METRIC_NAMES = {
  'rouge_l': 'ROUGE-L',
  'bleu': 'BLEU',
  'sentence_bleu': 'sentence BLEU',
  'chrf': 'chrF',
  'rouge_1': 'ROUGE-1',
  'rouge_2': 'ROUGE-2',
  'rouge_lsum': 'ROUGE-Lsum',
  'token_f1': 'token F1',
  'exact_match': 'exact match',
}
# What every speed-up is held against.
SPEED_UP_NOTE = (
  'speed-up: against the full model decoded without any checks by its fastest '
  'depth loop'
)

# Attributes of a row -> titles of columns that say what the exit layers do not,
# and what they mean.
_WORK = {
  'layers_run': (
    'layers run',
    'layers run: per token, those that it caught up for a later one, or that '
    'ran for drafts since dropped, included.',
  ),
  'layers_projected': (
    'K/V made',
    'K/V made: layers of which keys and values were made, per token.',
  ),
  'accepted_per_check': (
    'drafts kept',
    'drafts kept: per check by the full model.',
  ),
}


@dataclasses.dataclass(frozen=True)
class Table:
  """A grid of texts.

  Attributes:
    header: column titles.
    rows: one text per column; the first column is a name, the rest are numbers.
    notes: what the columns mean, one sentence each.
  """

  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  notes: tuple[str, ...] = ()


def metric_name(name: str) -> str:
  """Returns how a metric is written for readers.

  >>> metric_name('rouge_l'), metric_name('bleurt')
  ('ROUGE-L', 'bleurt')
  """
  return _METRIC_NAMES.get(name, name.replace('_', ' '))


def comparison_table(result: records.EvaluationResult) -> Table:
  """Returns the table of policies: quality, consistency, depth."""
  metrics = _metrics(result)
  with_risk = any(math.isfinite(row.risk_consistency) for row in result.rows)
  work = _work_shown(result)
  encoder = ['encoder layers'] if encoder_shown(result) else []
  consistency = metric_name(result.consistency_metric)
  header = ['decoding', *(f'{metric_name(name)} %' for name in metrics)]
  header.append('distance to full')
  header += ['quality lost'] if with_risk else []
  header += [
    'mean layers',
    'of depth',
    *(_WORK[name][0] for name in work),
    *encoder,
    f'tokens leaving at 1..{result.num_layers}, %',
  ]
  rows = []
  for row in result.rows:
    cells = [row_name(row)]
    cells += [number(row.quality.get(name), 1) for name in metrics]
    cells.append(
      _with_error(row.textual_consistency, row.textual_standard_error)
      if row.kind != 'full'
      else '0'
    )
    if with_risk:
      cells.append(
        _with_error(row.risk_consistency, row.risk_standard_error)
        if row.kind != 'full'
        else '0'
      )
    cells.append(number(row.mean_exit_layer, 2))
    cells.append(_percent(row.mean_exit_layer / result.num_layers))
    cells += [number(getattr(row, name), 2) for name in work]
    cells += [number(_encoder_layer(row, result), 2) for _ in encoder]
    cells.append(_shares(row))
    rows.append(tuple(cells))
  notes = [
    f'distance to full: mean of 1 - {consistency} between the output and the '
    "full model's, with its standard error.",
  ]
  if with_risk:
    notes.append(
      f'quality lost: mean {consistency} lost to the full model against the '
      'references, '
      + (
        f'below 0 where outputs are better. {records.SIGNED_LOSS_NOTE}'
        if _is_signed(result)
        else 'counted per input and never below 0.'
      )
    )
  notes.append(
    f'mean layers: decoder layers per decoded token, of {result.num_layers}.'
  )
  notes += [_WORK[name][1] for name in work]
  notes += [encoder_note(result.num_encoder_layers) for _ in encoder]
  return Table(tuple(header), tuple(rows), tuple(notes))


def encoder_shown(result: records.EvaluationResult) -> bool:
  """Whether sources leave the encoder early in some row."""
  return any(math.isfinite(row.mean_encoder_layer) for row in result.rows)


def encoder_note(num_layers: int | None) -> str:
  """Says what a column of encoder layers means."""
  return f'encoder layers: per input, of {num_layers}.'


def _encoder_layer(
  row: records.PolicyRow, result: records.EvaluationResult
) -> float | None:
  """Returns the encoder layers per source; all of them where none left."""
  if math.isfinite(row.mean_encoder_layer):
    return row.mean_encoder_layer
  return result.num_encoder_layers if row.num_tokens else None


def _work_shown(result: records.EvaluationResult) -> list[str]:
  """Returns the keys of `_WORK` that say something the exit layers do not."""
  rows = [row for row in result.rows if row.work and row.num_tokens]
  shown = []
  # With K/V of all layers for every token, no layer is run again.
  if any(row.layers_projected != result.num_layers for row in rows):
    shown += ['layers_run', 'layers_projected']
  if any(math.isfinite(row.accepted_per_check) for row in rows):
    shown.append('accepted_per_check')
  return shown


def timing_table(result: records.EvaluationResult) -> Table | None:
  """Returns the table of wall clocks, None if nothing was timed."""
  if not result.timings:
    return None
  with_ceiling = any(math.isfinite(row.ceiling) for row in result.timings)
  header = ['decoding', 'batch', 'ms per step', 'speed-up']
  header += ['ceiling'] if with_ceiling else []
  encoder = ['encoder layers'] if encoder_shown(result) else []
  header += ['mean layers', *encoder, 'depth loop']
  rows = []
  for row in result.timings:
    cells = [
      row.name,
      str(row.batch_size),
      number(row.milliseconds_per_step, 2),
      f'{number(row.speed_up, 2)}x',
    ]
    cells += [f'{number(row.ceiling, 2)}x'] if with_ceiling else []
    cells.append(number(row.mean_exit_layer, 2))
    if encoder:
      whole = math.isnan(row.mean_encoder_layer)
      layers = result.num_encoder_layers if whole else row.mean_encoder_layer
      cells.append(number(layers, 2))
    cells.append(row.depth_loop)
    rows.append(tuple(cells))
  first = result.timings[0]
  notes = [
    'ms per step: wall clock per token of the batch, with a share of the '
    'encoder in as many steps as the full model takes, median of '
    f'{first.num_repeats} interleaved repeats, on {result.context.device} in '
    f'{result.context.dtype}.',
    f'{SPEED_UP_NOTE}.',
  ]
  if with_ceiling:
    notes.append(
      'ceiling: what the memory traffic of the layers used, of every check '
      'and of the encoder would allow.'
    )
  return Table(tuple(header), tuple(rows), tuple(notes))


def as_text(table: Table) -> str:
  """Writes a table in aligned columns.

  >>> print(as_text(Table(('name', 'n'), (('a', '10'), ('long', '9')))))
  name   n
  ----  --
  a     10
  long   9
  """
  lines = [table.header, *table.rows]
  widths = [
    max(len(line[column]) for line in lines)
    for column in range(len(table.header))
  ]
  rule = tuple('-' * width for width in widths)
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if column else cell.ljust(width)
      for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in (table.header, rule, *table.rows)
  )


def as_markdown(table: Table) -> str:
  r"""Writes a table as GitHub Markdown, columns of numbers to the right.

  >>> print(as_markdown(Table(('name', 'n'), (('a|b', '10'),))))
  | name | n |
  |---|--:|
  | a\|b | 10 |
  """
  columns = zip(*table.rows, strict=True) if table.rows else table.header
  rule = '|'.join(
    '--:' if all(map(_is_number, cells)) else '---' for cells in columns
  )
  lines = [
    '| ' + ' | '.join(_escaped(line)) + ' |'
    for line in (table.header, *table.rows)
  ]
  return '\n'.join([lines[0], f'|{rule}|', *lines[1:]])


def with_notes(
  table: Table,
  write: Callable[[Table], str] = as_markdown,
  note_form: str = '- {}',
) -> str:
  """Writes a table and what its columns mean below it.

  >>> print(with_notes(Table(('a', 'n'), (('b', '1'),), ('n: a number.',))))
  | a | n |
  |---|--:|
  | b | 1 |
  <BLANKLINE>
  - n: a number.
  """
  notes = '\n'.join(note_form.format(note) for note in table.notes)
  return f'{write(table)}\n\n{notes}' if notes else write(table)


def render_text(result: records.EvaluationResult) -> str:
  """Renders the whole evaluation for a terminal."""
  return _render(result, as_text, '{}')


def render_markdown(result: records.EvaluationResult) -> str:
  """Renders the whole evaluation for a README."""
  return _render(result, as_markdown, '- {}')


def row_name(row: records.PolicyRow) -> str:
  """Returns a row's name with its threshold, where it has one."""
  if row.kind in ('certified', 'early_exit') and row.setting is not None:
    return f'{row.name} ({records.setting_in_words(row.setting)})'
  return row.name


def early_exit_row(
  result: records.EvaluationResult,
) -> records.PolicyRow | None:
  """Returns the certified row, else the first early exit, else None."""
  for kind in ('certified', 'early_exit'):
    for row in result.rows:
      if row.kind == kind:
        return row
  return None


def realised_consistency(result: records.EvaluationResult) -> str | None:
  """Says how the certified loss came out on this split, None if not known."""
  certificate = result.certificate
  row = next((row for row in result.rows if row.kind == 'certified'), None)
  if certificate is None or row is None:
    return None
  if result.promises:
    return _realised_together(result)
  value, error = row.textual_consistency, row.textual_standard_error
  if certificate.loss != 'textual':
    value, error = row.risk_consistency, row.risk_standard_error
  if not math.isfinite(value):
    return None
  relation = 'within' if value <= certificate.tolerance else 'ABOVE'
  return (
    f'On {result.num_examples} inputs of the {result.split} split the mean '
    f'{certificate.loss} loss is {_with_error(value, error)}, {relation} the '
    f'tolerance of {certificate.tolerance:g}.'
  )


def _realised_together(result: records.EvaluationResult) -> str:
  """Says of each of several promised losses how it came out."""
  where = (
    f'On {result.num_examples} inputs of the {result.split} split '
    f'{len(result.promises)} losses that were promised together came out: '
  )
  found = [
    f'{promise.loss} by {metric_name(promise.metric)} '
    + (
      'not measured, for lack of references'
      if promise.kept is None
      else f'{_with_error(promise.mean, promise.standard_error)}, '
      f'{"within" if promise.kept else "ABOVE"} its tolerance of '
      f'{promise.tolerance:g}'
    )
    for promise in result.promises
  ]
  kept = [promise.kept for promise in result.promises]
  broken = kept.count(False)
  verdict = f'{broken} of them {"IS" if broken == 1 else "ARE"} BROKEN here.'
  if not broken:
    verdict = 'All of them hold here.'
    if None in kept:
      verdict = 'Those that were measured hold here.'
  return f'{where}{"; ".join(found)}. {verdict}'


def certified_sentences(result: records.EvaluationResult) -> list[str]:
  """Says what was certified, how it came out here, and the use of a budget."""
  parts = []
  if result.certificate is not None:
    parts.append(result.certificate.description)
  realised = realised_consistency(result)
  parts += [realised] if realised else []
  parts += [result.budget.describe()] if result.budget else []
  return parts


def _render(result, write, note_form: str) -> str:
  """Joins certificate, tables and notes with empty lines between them."""
  parts = [f'{result.task}, {result.split} split, {result.num_examples} inputs']
  parts += certified_sentences(result)
  for table in (comparison_table(result), timing_table(result)):
    if table is not None:
      parts.append(with_notes(table, write, note_form))
  return '\n\n'.join(parts) + '\n'


def _is_signed(result) -> bool:
  """Whether quality lost may be negative: the signed loss was certified."""
  if result.certificate is None:
    return False
  return any(one.loss == 'signed' for one in result.certificate.losses)


def _metrics(result) -> list[str]:
  """Returns the quality metrics of all rows, the primary one first."""
  names = dict.fromkeys(name for row in result.rows for name in row.quality)
  return sorted(names, key=lambda name: name != result.primary_metric)


def number(value: float | None, digits: int) -> str:
  """Writes a number, a dash where there is none."""
  if value is None or not math.isfinite(value):
    return '-'
  return f'{value:.{digits}f}'


def _is_number(cell: str) -> bool:
  """Whether a cell is read as a number, or stands where there is none."""
  return cell[:1].isdigit() or cell[:1] == '-'


def _percent(share: float) -> str:
  return f'{100 * share:.0f} %' if math.isfinite(share) else '-'


def _with_error(value: float, error: float) -> str:
  """Writes a mean with its standard error."""
  if not math.isfinite(error):
    return number(value, 3)
  return f'{value:.3f} ±{error:.3f}'


def _shares(row: records.PolicyRow) -> str:
  """Writes the histogram in whole percents."""
  if not row.num_tokens:
    return '-'
  return ' '.join(
    f'{100 * count / row.num_tokens:.0f}' for count in row.exit_layer_histogram
  )


def _escaped(line: tuple[str, ...]) -> list[str]:
  """Keeps a cell from ending its column."""
  return [cell.replace('|', '\\|').replace('\n', ' ') for cell in line]

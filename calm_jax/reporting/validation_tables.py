"""Renders a validation as tables: is the guarantee kept, and at what depth?"""

import math
from collections.abc import Sequence

import numpy as np

from calm_jax import records
from calm_jax.reporting import tables


def verdict(validation: records.Validation) -> str:
  """Says in two sentences whether violations are as rare as promised."""
  counts = [
    (table, count)
    for table in validation.tables
    for count in (*table.counts, *table.near_counts)
  ]
  table, worst = max(counts, key=lambda pair: pair[1].rate)
  above = sum(count.rate_low > validation.error_rate for _, count in counts)
  outcome = (
    'none lies above'
    if not above
    else f'{above} {"LIES" if above == 1 else "LIE"} ABOVE'
  )
  return (
    f'Of {len(counts)} violation rates counted {outcome} the error rate of '
    f'{_percent(validation.error_rate, 0)} by more than chance (with the whole '
    f'95 % interval). The largest is {_rate(worst)}: {table.name} with '
    f'{worst.p_value} at tolerance {_tolerance(worst, ".4g")}.'
  )


def violation_table(validation: records.Validation) -> tables.Table:
  """Returns the counts at the tolerances that were asked for."""
  timed = any(table.speeds is not None for table in validation.tables)
  rows = [
    (
      _name(table, count.p_value),
      _tolerance(count),
      _rate(count),
      _percent(count.share_certified, 0),
      f'{count.mean_risk:.4f}',
      _layers(count.mean_exit_layer),
      *_whole(table, certificate),
      *([_speed_up(table, certificate)] if timed else []),
    )
    for table in validation.tables
    for count, certificate in zip(table.counts, table.certificates, strict=True)
  ]
  return tables.Table(
    header=(
      'measure, p-value',
      'tolerance',
      'violation rate (95 %)',
      'certified',
      'mean risk',
      'mean layers',
      'whole table certifies',
      'its mean loss',
      'its layers',
      *(['its speed-up'] if timed else []),
    ),
    rows=tuple(rows),
    notes=(
      _drawn(validation),
      *_together(validation),
      'violation rate: draws whose chosen setting has a risk above its '
      'tolerance; the guarantee is that they are at most '
      f'{_percent(validation.error_rate, 0)}. Clopper-Pearson interval.',
      'certified: draws in which anything was. Where nothing was, the full '
      'model counts: risk 0, all layers.',
      'whole table certifies: what one calibration on all rows gives, by '
      f'{validation.procedure}. Each holds by itself; whoever picks the best '
      'of m afterwards needs error rate / m.',
      *_timed(validation),
    ),
  )


def near_table(validation: records.Validation) -> tables.Table | None:
  """Returns the worst and the mean of the counts near risks, None if none."""
  rows = [
    (
      _name(table, p_value),
      str(len(counts)),
      _rate(worst := max(counts, key=lambda count: count.rate)),
      _tolerance(worst, '.4f'),
      records.setting_in_words(worst.near_setting),
      _percent(sum(count.rate for count in counts) / len(counts)),
    )
    for table in validation.tables
    for p_value, counts in _by_p_value(table.near_counts).items()
  ]
  if not rows:
    return None
  return tables.Table(
    header=(
      'measure, p-value',
      'tolerances',
      'largest violation rate (95 %)',
      'at tolerance',
      'just below the risk of',
      'mean rate',
    ),
    rows=tuple(rows),
    notes=(
      'Each tolerance, of several promised together one at a time, is 0.98 x '
      'the risk of a setting of the grid, where violations are likeliest: that '
      'setting is too risky by very little.',
    ),
  )


def split_table(validation: records.Validation) -> tables.Table | None:
  """Returns what the paper's splits showed, None if there were none."""
  studies = [
    (table, study) for table in validation.tables for study in table.splits
  ]
  if not studies:
    return None
  rows = [
    (
      _name(table, study.p_value),
      f'{study.tolerance:g}',
      f'{study.num_above} of {study.num_splits}',
      _percent(study.share_above, 0),
      f'{np.mean(study.test_risks):.4f}',
      f'{np.quantile(study.test_risks, 0.05):.4f} to '
      f'{np.quantile(study.test_risks, 0.95):.4f}',
      _layers(study.mean_exit_layer),
    )
    for table, study in studies
  ]
  return tables.Table(
    header=(
      'measure, p-value',
      'tolerance',
      'splits above it',
      'share',
      'mean test loss',
      '5 to 95 %',
      'mean layers',
    ),
    rows=tuple(rows),
    notes=(
      'splits above it: random splits (80 % calibrated on, 20 % measured on) '
      'whose mean loss on the 20 % is above the tolerance. That is the '
      'exceedance of a noisy estimate and no violation rate: it may be larger '
      'than the error rate although the guarantee holds.',
    ),
  )


def sections(
  validation: records.Validation,
) -> list[tuple[str, tables.Table]]:
  """Returns the tables with their titles, in the order of a report."""
  titled = {
    'Violations, counted': violation_table(validation),
    'Where violations are likeliest': near_table(validation),
    'Random 80/20 splits: a noisy estimate, not a violation rate': split_table(
      validation
    ),
  }
  return [
    (title, table) for title, table in titled.items() if table is not None
  ]


def is_joint(validation: records.Validation) -> bool:
  """Whether losses were promised together, of which no picture is drawn."""
  return any(
    count.promises for table in validation.tables for count in table.counts
  )


def render_validation_text(validation: records.Validation) -> str:
  """Renders the whole validation for a terminal."""
  return _render(validation, tables.as_text, '{}', '{}')


def render_validation_markdown(validation: records.Validation) -> str:
  """Renders the whole validation for a README."""
  return _render(validation, tables.as_markdown, '### {}', '- {}')


def about(validation: records.Validation) -> str:
  """Says what was taken for the population."""
  first = validation.tables[0]
  loss = first.loss
  if first.metric:
    loss += f' loss ({tables.metric_name(first.metric)})'
  sizes = _listed(table.num_examples for table in validation.tables)
  where = ', '.join(
    dict.fromkeys(
      f'{table.task} {table.split}'.strip() for table in validation.tables
    )
  )
  number = len(validation.tables)
  return (
    f'{number} {"table" if number == 1 else "tables"} of the {loss}, {sizes} '
    f'inputs{f" of {where}" if where else ""}, taken for the population; '
    f'{validation.procedure} at error rate {validation.error_rate:g}.'
  )


def _render(validation, write, title_form: str, note_form: str) -> str:
  """Joins sentences, tables and notes with empty lines between them."""
  parts = [about(validation), verdict(validation)]
  for title, table in sections(validation):
    parts.append(title_form.format(title))
    parts.append(tables.with_notes(table, write, note_form))
  return '\n\n'.join(parts) + '\n'


def _whole(
  table: records.ValidatedTable, certificate: records.CertificateSummary
) -> tuple[str, str, str]:
  """Returns which setting a certificate chose, its mean loss and layers."""
  if not certificate.certified:
    return 'nothing', '-', '-'
  place = table.settings.index(certificate.setting)
  return (
    records.setting_in_words(certificate.setting),
    f'{certificate.calibration_loss:.4f}',
    _layers(table.mean_exit_layers[place]),
  )


def _speed_up(
  table: records.ValidatedTable, certificate: records.CertificateSummary
) -> str:
  """Returns how much faster what a certificate chose was measured to be."""
  if table.speeds is None or not certificate.certified:
    return '-'
  place = table.settings.index(certificate.setting)
  return f'{table.speeds.speed_ups[place]:.2f}x'


def _timed(validation: records.Validation) -> list[str]:
  """Says how speed-ups were measured, if they were."""
  for speeds in [table.speeds for table in validation.tables]:
    if speeds is not None:
      return [
        'its speed-up: wall clock per decoded token at batch '
        f'{speeds.full.batch_size} against the full model without checks, both '
        f'by their fastest depth loop, on {speeds.context.device} in '
        f'{speeds.context.dtype}, {speeds.full.num_batches} inputs, median of '
        f'{speeds.full.num_repeats} interleaved repeats.'
      ]
  return []


def _tolerance(count: records.ViolationCount, form: str = 'g') -> str:
  """Writes a tolerance, or those of losses that are promised together."""
  if not count.promises:
    return f'{count.tolerance:{form}}'
  return ', '.join(
    f'{promise.loss} {promise.tolerance:{form}}' for promise in count.promises
  )


def _together(validation: records.Validation) -> list[str]:
  """Says what several tolerances and a signed loss mean, if there are any."""
  notes = []
  if is_joint(validation):
    notes.append(
      'tolerance: of losses that are promised together; a violation breaks any '
      'of them, and mean risk and mean loss are those of the first.'
    )
  if any('signed' in table.loss.split(' and ') for table in validation.tables):
    notes.append(records.SIGNED_LOSS_NOTE)
  return notes


def _drawn(validation: records.Validation) -> str:
  counts = [count for table in validation.tables for count in table.counts]
  return (
    f'{_listed(count.num_draws for count in counts)} draws of '
    f'{_listed(count.draw_size for count in counts)} rows with replacement '
    f'(seed {validation.seed}), one calibration each. The risk of a setting is '
    'its mean loss over the whole table.'
  )


def _by_p_value(
  counts: Sequence[records.ViolationCount],
) -> dict[str, list[records.ViolationCount]]:
  groups: dict[str, list[records.ViolationCount]] = {}
  for count in counts:
    groups.setdefault(count.p_value, []).append(count)
  return groups


def _name(table: records.ValidatedTable, p_value: str) -> str:
  return f'{table.name}, {p_value}'


def _listed(numbers) -> str:
  """Writes the different ones of some whole numbers."""
  return ' or '.join(f'{number:,}' for number in dict.fromkeys(numbers))


def _rate(count: records.ViolationCount) -> str:
  return (
    f'{_percent(count.rate)} ({100 * count.rate_low:.1f} to '
    f'{100 * count.rate_high:.1f})'
  )


def _percent(share: float, digits: int = 1) -> str:
  text = f'{100 * share:.{digits}f}'
  # An error rate of 0.025 is no 2 %.
  if digits == 0 and abs(float(text) - 100 * share) > 1e-9:
    text = f'{100 * share:.3g}'
  return f'{text} %'


def _layers(value: float) -> str:
  return f'{value:.2f}' if math.isfinite(value) else '-'

"""Renders a tuning as tables: what was tested, and the rest of the front."""

import math
from collections.abc import Iterable

from calm_jax import records
from calm_jax.reporting import columns, tables


def tuning_table(
  tuning: records.Tuning, *, every: bool = False
) -> tables.Table:
  """Returns one row per candidate, from slow to fast.

  Args:
    tuning: the tuning.
    every: all candidates; those of the front, the lossless ones, the chosen one
      and CALM's own choice if not.
  """
  shown = {*tuning.front, tuning.chosen, tuning.paper}
  places = [
    place
    for place, one in enumerate(tuning.candidates)
    if every or place in shown or one.lossless
  ]
  places.sort(key=lambda place: -tuning.candidates[place].milliseconds)
  losses = [promise.loss for promise in tuning.promises]
  full = ('full model', tables.number(tuning.full_milliseconds, 2), '1.00')
  # One loop for all is nobody's news.
  several = len(tuning.depth_loops or ()) > 1
  blank = ('-',) * (1 + len(losses))
  rows = [
    (
      *full,
      tuning.full_depth_loop if several else '-',
      *('-', *blank, *blank),
      'chosen' if tuning.chosen is None else '',
    ),
    *(_row(tuning, place, several) for place in places),
  ]
  return columns.without_empty_columns(
    tables.Table(
      header=(
        'candidate',
        'ms a step',
        'speed-up',
        'depth loop',
        'mean layers',
        'encoder layers',
        *(f'{loss}, screened' for loss in losses),
        *(f'{loss}, tested' for loss in losses),
        'p',
        'outcome',
      ),
      rows=tuple(rows),
      notes=(
        f'speed-up: against the full model without any checks, at batch size '
        f'{tuning.batch_size} on {tuning.context.device}.',
        tables.encoder_note(tuning.num_encoder_layers),
        f'screened, tested: mean loss on {len(tuning.screening_ids)} and on '
        f'{len(tuning.test_ids)} other inputs.',
        f'p: on the inputs that test, by {tuning.p_value}; at most '
        f'{tuning.error_rate:g} passes.',
        f"CALM's own: what its calibration, with the paper's p-value, would "
        f'choose of {tuning.compared} by the rows that screen; it certifies '
        'nothing.',
      ),
    )
  )


def choices_table(
  tunings: Iterable[tuple[str, records.Tuning]],
) -> tables.Table:
  """Returns what several tunings chose, a row each.

  Args:
    tunings: pairs of the name of a model and a tuning of it.
  """
  rows = []
  for name, tuning in tunings:
    one = tuning.choice
    tested = [one for one in tuning.candidates if one.test_means]
    lossless = [one.speed_up for one in tuning.candidates if one.lossless]
    losses = '-'
    if one is not None and one.test_means:
      losses = ' '.join(tables.number(mean, 4) for mean in one.test_means)
    rows.append(
      (
        name,
        str(tuning.batch_size),
        'full model' if one is None else one.label,
        '1.00' if one is None else tables.number(one.speed_up, 2),
        losses,
        f'{len(tuning.certified)} of {len(tested)}',
        tables.number(max(lossless), 2) if lossless else '-',
      )
    )
  return tables.Table(
    header=(
      'model',
      'batch',
      'chosen',
      'speed-up',
      'loss',
      'certified',
      'lossless',
    ),
    rows=tuple(rows),
    notes=(
      'loss: the mean on the inputs that tested.',
      'certified: of those that were tested.',
      'lossless: the speed-up of the fastest candidate that loses nothing.',
    ),
  )


def render_tuning_text(tuning: records.Tuning) -> str:
  """Renders a tuning for a terminal."""
  table = tables.with_notes(tuning_table(tuning), tables.as_text, '{}')
  return '\n'.join((*about_tuning(tuning), '', table))


def about_tuning(tuning: records.Tuning) -> list[str]:
  """Returns what was promised and how it was tested, in sentences."""
  promised = ' and '.join(one.describe() for one in tuning.promises)
  together = ', together' if len(tuning.promises) > 1 else ''
  certified = len(tuning.certified)
  tested = sum(bool(one.test_means) for one in tuning.candidates)
  lines = [
    f'Promised: {promised}{together}, but for a probability of '
    f'{tuning.error_rate:g}.',
    f'{len(tuning.candidates)} candidates were screened by '
    f'{len(tuning.screening_ids)} inputs and by the clock. '
    f'{len(tuning.sequence)} were left to test by {len(tuning.test_ids)} '
    f'others, safest first, each at the whole error rate until one fails: '
    f'{tested} were tested, {certified} certified. Which inputs do what was '
    f'drawn with seed {tuning.seed}.',
  ]
  if tuning.left_out:
    lines.append(
      f'Time did not last for {len(tuning.left_out)} more candidates: '
      f'{"; ".join(tuning.left_out)}.'
    )
  return lines


def render_tuned_validation(found: records.TunedValidation) -> str:
  """Renders how often tunings on draws break what they promise, in Markdown."""
  rows = []
  for count in found.counts:
    near = count.near_setting
    rows.append(
      (
        ' and '.join(
          f'{one.loss} {one.tolerance:.4g}' for one in count.promises
        ),
        'as promised'
        if near is None
        else f'just below {near["policy"]}, '
        f'{records.setting_in_words(near["setting"])}',
        tables.number(100 * count.num_certified / count.num_draws, 1),
        tables.number(100 * count.num_violations / count.num_draws, 2),
        f'{100 * count.rate_low:.2f} to {100 * count.rate_high:.2f}',
      )
    )
  table = tables.Table(
    header=('promised', 'where', 'certified %', 'broken %', 'interval'),
    rows=tuple(rows),
    notes=(
      f'broken: of {found.counts[0].num_draws:,} tunings, each on '
      f'{found.counts[0].draw_size:,} rows drawn from {found.num_rows:,} with '
      f'replacement, among {len(found.candidates)} candidates, by '
      f'{found.p_value}; promised is at most {100 * found.error_rate:g} %.',
      'interval: of that share (95 %, Clopper-Pearson).',
      'just below: the tolerance is 0.98 x the risk of that candidate, where '
      'certifying it is a violation by so little that it happens most easily.',
      *_by_hand(found.by_hand),
    ),
  )
  return tables.with_notes(table)


def _by_hand(found: records.HandComparison | None) -> list[str]:
  """Returns what is said of choices by hand, if they were looked at."""
  if found is None:
    return []
  return [
    f'On {found.num_draws:,} such draws tuning decodes '
    f'{found.tuned_speed_up:.2f} times as fast as the full model on the mean, '
    f'with something certified in {100 * found.tuned_certified:.1f} % of them; '
    f'each of the {found.num_policies} policies calibrated by hand, on all '
    f'rows at the error rate over {found.num_policies}, and the fastest taken: '
    f'{found.hand_speed_up:.2f}, in {100 * found.hand_certified:.1f} %; what '
    f'needs no certificate: {found.least_speed_up:.2f}.'
  ]


def _row(tuning: records.Tuning, place: int, several: bool) -> tuple[str, ...]:
  one = tuning.candidates[place]
  number = len(tuning.promises)
  screened = one.screening_means or (math.nan,) * number
  tested = one.test_means or (math.nan,) * number
  return (
    one.label,
    tables.number(one.milliseconds, 2),
    tables.number(one.speed_up, 2),
    one.depth_loop if several else '-',
    tables.number(one.mean_exit_layer, 2),
    tables.number(one.mean_encoder_layer, 2),
    *(tables.number(mean, 4) for mean in screened),
    *(tables.number(mean, 4) for mean in tested),
    '-' if math.isnan(one.test_p_value) else f'{one.test_p_value:.2g}',
    _outcome(tuning, place),
  )


def _outcome(tuning: records.Tuning, place: int) -> str:
  one = tuning.candidates[place]
  said = []
  if one.lossless:
    said.append('lossless')
  if one.certified:
    said.append('certified')
  elif one.test_means:
    said.append('failed')
  if place == tuning.paper:
    said.append("CALM's own")
  if place == tuning.chosen:
    said.append('chosen')
  return ', '.join(said)

"""Draws a validation: risk and depth against tolerance, violations counted.

One colour per loss table, which is one per confidence measure. Bands are where
nine of ten calibrations end.
"""

from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_COLOURS = (
  palette.EARLY,
  '#2c78a3',
  palette.ORACLE,
  '#3d9a6b',
  palette.FULL,
  palette.STATIC,
)
_MARKERS = 'osD^vP'
# Letters of a name: two columns of a legend must fit.
_LONGEST = 42


def risk_figure(validation: records.Validation) -> Any:
  """Draws the risk of what is certified against the tolerance.

  Lines are means over the draws, hollow marks the mean loss on the part of the
  paper's splits that was not calibrated on. Below the diagonal is promised.

  Returns:
    A matplotlib Figure.

  Raises:
    ValueError: if no table has a curve.
  """
  drawn = _with_curves(validation)
  figure, axes = styling.new_axes()
  with styling.style():
    end = max(table.curve.tolerances[-1] for table, _ in drawn)
    axes.plot(
      [0, end],
      [0, end],
      color=palette.FULL,
      linestyle='--',
      linewidth=1.2,
      label='risk = tolerance',
    )
    for table, colour in drawn:
      curve = table.curve
      _draw_band(
        axes,
        curve.tolerances,
        (curve.low_risks, curve.mean_risks, curve.high_risks),
        colour=colour,
        label=_plain(table.name),
      )
      axes.plot(
        curve.tolerances,
        curve.split_risks,
        linestyle='none',
        marker='o',
        markersize=4,
        markerfacecolor='none',
        markeredgecolor=colour,
        markeredgewidth=0.9,
      )
    _note_marks(axes, 'held-out 20 %, mean of the splits')
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(f'tolerance ({_loss(validation)})')
    axes.set_ylabel('risk of the certified setting')
    axes.legend(loc='upper left', fontsize=8.5)
  return figure


def depth_figure(validation: records.Validation) -> Any:
  """Draws the layers per token of what is certified against the tolerance.

  Raises:
    ValueError: if no table has a curve.
  """
  drawn = _with_curves(validation)
  depths = [table.num_layers for table, _ in drawn if table.num_layers]
  figure, axes = styling.new_axes()
  with styling.style():
    for depth in dict.fromkeys(depths):
      axes.axhline(
        depth,
        color=palette.FULL,
        linestyle=':',
        linewidth=1.4,
        label=f'full model ({depth} layers)',
      )
    for table, colour in drawn:
      curve = table.curve
      _draw_band(
        axes,
        curve.tolerances,
        (curve.low_exit_layers, curve.mean_exit_layers, curve.high_exit_layers),
        colour=colour,
        label=_plain(table.name),
      )
    end = max(table.curve.tolerances[-1] for table, _ in drawn)
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(0, 1.05 * max(depths) if depths else None)
    axes.set_xlabel(f'tolerance ({_loss(validation)})')
    axes.set_ylabel('decoder layers per token, mean')
    axes.legend(loc='best', fontsize=8.5)
  return figure


def is_timed(validation: records.Validation) -> bool:
  """Says whether there is a curve of measured speed-ups."""
  curves = [table.curve for table in validation.tables]
  return any(curve and curve.mean_speed_ups is not None for curve in curves)


def speed_figure(validation: records.Validation) -> Any:
  """Draws the measured speed-up of what is certified against the tolerance.

  Raises:
    ValueError: if the settings of no table were timed.
  """
  if not is_timed(validation):
    raise ValueError(
      'the settings of no table were timed: run calm_jax.cli.calibrate with '
      '--gin.TIMED_INPUTS=8'
    )
  drawn = [
    (table, colour)
    for table, colour in _with_curves(validation)
    if table.curve.mean_speed_ups is not None
  ]
  figure, axes = styling.new_axes()
  with styling.style():
    axes.axhline(
      1.0,
      color=palette.FULL,
      linestyle=':',
      linewidth=1.4,
      label='full model without checks',
    )
    for table, colour in drawn:
      axes.plot(
        table.curve.tolerances,
        table.curve.mean_speed_ups,
        color=colour,
        linewidth=1.8,
        label=_plain(table.name),
      )
    batch_size = drawn[0][0].speeds.full.batch_size
    axes.set_xlim(0, 1.02 * max(t.curve.tolerances[-1] for t, _ in drawn))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f'tolerance ({_loss(validation)})')
    axes.set_ylabel(f'measured speed-up at batch {batch_size}, mean')
    axes.legend(loc='best', fontsize=8.5)
  return figure


def violation_figure(validation: records.Validation) -> Any:
  """Draws every violation rate with its interval beside the error rate."""
  figure, axes = styling.new_axes()
  p_values = list(
    dict.fromkeys(
      count.p_value
      for table in validation.tables
      for count in (*table.counts, *table.near_counts)
    )
  )
  with styling.style():
    error_rate = 100 * validation.error_rate
    axes.axhline(
      error_rate,
      color=palette.FULL,
      linestyle='--',
      linewidth=1.2,
      label=f'error rate ({error_rate:g} %)',
    )
    for table, colour in zip(
      validation.tables, _colours(validation), strict=True
    ):
      for p_value, marker in zip(p_values, _markers(p_values), strict=True):
        counts = [
          count
          for count in (*table.counts, *table.near_counts)
          if count.p_value == p_value
        ]
        label = f'{table.name}, {p_value}'
        _draw_rates(axes, counts, colour, marker, _plain(label))
    axes.set_xlim(left=0)
    # Rates of 0 stand on the axis: room for their marks.
    top = max(1.15 * axes.get_ylim()[1], 1.3 * error_rate)
    axes.set_ylim(-0.03 * top, top)
    axes.set_xlabel(f'tolerance ({_loss(validation)})')
    axes.set_ylabel('violation rate, %')
    axes.legend(
      loc='lower left', bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8.5
    )
  return figure


def _draw_band(axes, tolerances, curves, *, colour, label) -> None:
  """Draws the middle one of three curves, and the band between the others."""
  low, mean, high = curves
  axes.fill_between(
    tolerances, low, high, color=colour, alpha=0.13, linewidth=0
  )
  axes.plot(tolerances, mean, color=colour, linewidth=1.8, label=label)


def _draw_rates(axes, counts, colour, marker, label) -> None:
  """Marks rates with their intervals."""
  if not counts:
    return
  rates = [100 * count.rate for count in counts]
  axes.errorbar(
    [count.tolerance for count in counts],
    rates,
    yerr=[
      [rate - 100 * c.rate_low for rate, c in zip(rates, counts, strict=True)],
      [100 * c.rate_high - rate for rate, c in zip(rates, counts, strict=True)],
    ],
    linestyle='none',
    marker=marker,
    markersize=4.5,
    color=colour,
    markeredgecolor='white',
    markeredgewidth=0.5,
    elinewidth=0.9,
    capsize=2,
    label=label,
  )


def _with_curves(validation) -> list[tuple[records.ValidatedTable, str]]:
  """Returns the tables that have a curve, with their colours."""
  drawn = [
    (table, colour)
    for table, colour in zip(
      validation.tables, _colours(validation), strict=True
    )
    if table.curve is not None
  ]
  if not drawn:
    raise ValueError(
      'no table of the validation has a curve: run calm_jax.cli.validate with '
      '--curve_points above 0'
    )
  return drawn


def _colours(validation) -> list[str]:
  number = len(validation.tables)
  return [_COLOURS[place % len(_COLOURS)] for place in range(number)]


def _markers(names) -> list[str]:
  return [_MARKERS[place % len(_MARKERS)] for place, _ in enumerate(names)]


def _note_marks(axes, label: str) -> None:
  """Puts the hollow marks of all colours into the legend once."""
  axes.plot(
    [],
    [],
    linestyle='none',
    marker='o',
    markersize=4,
    markerfacecolor='none',
    markeredgecolor=palette.STATIC,
    label=label,
  )


def _loss(validation) -> str:
  table = validation.tables[0]
  return _plain(f'{table.loss} loss')


def _plain(text: str) -> str:
  """Makes a name fit for a legend: no mathematics, and not too long."""
  if len(text) > _LONGEST:
    text = f'{text[: _LONGEST - 1]}\u2026'
  return text.replace('$', r'\$')

"""How many rows does a calibration take that may stop at any time?

  git clone https://github.com/metodj/RC-EENN
  python -m calm_jax.benchmarks.anytime_rows \
    --scores=RC-EENN/calm/data/calm_cnndm.p

`calibration.AnytimeSequence` beside `fixed_sequence` on the same draws, with
the same bets. First single settings by laws of their losses: as many rows are
there as betting on all of them takes for the given power at half the tolerance,
or several times as many, and the risk is a share of the tolerance. Then whole
sequences of settings, on the scores that `certified_layers` reads (draws with
replacement, losses against the full model's quality). NumPy and SciPy only.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from calm_jax import calibration
from calm_jax.benchmarks import certified_layers, loss_laws, measured_rows
from calm_jax.benchmarks.anytime_study import AnytimeRow, compare
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.calibration.population import Population
from calm_jax.reporting import tables


def of_laws(
  laws: Sequence[str],
  *,
  tolerance: float,
  times: Sequence[int],
  risk_shares: Sequence[float],
  power: float,
  **options: Any,
) -> Iterator[AnytimeRow]:
  """Yields rows of single settings.

  Args:
    laws: keys of `loss_laws.LAWS` whose risk is not 0.
    tolerance: in the units of the losses.
    times: how many times as many rows are there as it takes.
    risk_shares: risks as shares of the tolerance.
    power: of betting on as many rows as it takes, at half the tolerance.
    **options: of `compare`.
  """
  for name in laws:
    if name not in loss_laws.LAWS:
      raise ValueError(f'{name!r} is none of {", ".join(loss_laws.LAWS)}')
    law = loss_laws.LAWS[name]
    needed = calibration.required_examples(
      tolerance,
      options['error_rate'],
      power=power,
      p_value=calibration.Betting(level=options['error_rate']),
      pilot_losses=law.of_risk(tolerance * law.risk_share),
      loss_range=law.loss_range,
    )
    for share in risk_shares:
      population = Population(
        law.of_risk(tolerance * share)[:, np.newaxis],
        settings=[0.5],
        mean_exit_layers=np.ones(1),
        loss_range=law.loss_range,
      )
      for number in times:
        yield compare(
          law.description,
          population,
          tolerance=tolerance,
          there=number * needed,
          risk_share=share,
          **options,
        )


def table(measured: Measured) -> tables.Table:
  """Returns a line per row."""
  return tables.Table(
    header=(
      'losses',
      'tolerance',
      'risk',
      'rows there',
      'certified from all',
      'certified if stopped',
      'rows of the full model',
      'rows at settings',
    ),
    rows=tuple(
      (
        row.name,
        f'{row.tolerance:g}',
        *_certified(row),
        f'{row.full_rows:,.0f} ({row.full_rows / row.there:.0%})',
        _settings(row),
      )
      for row in measured.rows
    ),
    notes=(
      f'means of {measured.flags["draws"]} draws, looked at in blocks of '
      f'{measured.flags["block"]}, given up at {measured.flags["give_up"]:g}; '
      'of a law, how often a setting of that risk is certified; of published '
      'scores, layers.',
    ),
  )


def _settings(row: AnytimeRow) -> str:
  """Returns the rows at settings; of a single one they are the others."""
  if not math.isnan(row.risk_share):
    return ''
  return f'{row.setting_rows:,.0f} of {row.fixed_setting_rows:,.0f}'


def _certified(row: AnytimeRow) -> tuple[str, str, str, str]:
  there = f'{row.there:,}'
  if math.isnan(row.risk_share):
    layers = (
      f'{row.fixed_layers:.2f} layers',
      f'{row.stopped_layers:.2f} layers',
    )
    return '', there, *layers
  risk = f'{row.risk_share * row.tolerance:g}'
  return risk, there, f'{row.fixed:.1%}', f'{row.stopped:.1%}'


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('anytime_rows', __doc__ or '')
  add: Any = parser.add
  add('scores', None, 'the pickle of scores that certified_layers reads')
  add('num_layers', 24, 'decoder layers of their model', type=int)
  add('score_tolerances', '0.02,0.05', 'of the quality lost, by commas')
  add('sizes', '1000', 'rows that are there of the scores, by commas')
  add('every', '1,10', 'take every n-th of their thresholds, by commas')
  add('laws', 'bernoulli,beta,signed', 'what losses look like, by commas')
  add('tolerance', 0.1, 'of the laws', type=float)
  add('times', '1,4', 'rows there, times what it takes, by commas')
  add('risk_shares', '0.5,1.5', 'risks by the tolerance, by commas')
  add('power', 0.8, 'of all rows at half the tolerance', type=float)
  add('error_rate', 0.05, 'how often a certificate may be wrong', type=float)
  add('block', 16, 'rows that are looked at at a time', type=int)
  add('give_up', 0.1, 'wealth at which a setting is given up', type=float)
  add('draws', 1000, 'calibrations per row', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _measure(flags: argparse.Namespace) -> Iterator[AnytimeRow]:
  options: dict[str, Any] = dict(
    procedure=calibration.AnytimeSequence(flags.block, flags.give_up),
    error_rate=flags.error_rate,
    num_draws=flags.draws,
  )
  yield from of_laws(
    [name for name in flags.laws.split(',') if name],
    tolerance=flags.tolerance,
    times=[int(text) for text in flags.times.split(',')],
    risk_shares=[float(text) for text in flags.risk_shares.split(',')],
    power=flags.power,
    **options,
  )
  if flags.scores is None:
    return
  found = certified_layers.populations(
    *certified_layers.read_scores(flags.scores), num_layers=flags.num_layers
  )
  for loss, tolerance, every, size in itertools.product(
    found,
    map(float, flags.score_tolerances.split(',')),
    map(int, flags.every.split(',')),
    map(int, flags.sizes.split(',')),
  ):
    population = _thinned(found[loss], every)
    yield compare(
      f'CNN/DM, {loss}, {len(population.settings)} thresholds',
      population,
      tolerance=tolerance,
      there=size,
      **options,
    )


def _thinned(population: Population, every: int) -> Population:
  """Returns every n-th setting of a table, the n-th one first."""
  if not 1 <= every <= len(population.settings):
    raise ValueError(
      f'every {every} leaves none of {len(population.settings)} thresholds; '
      f'give 1 to {len(population.settings)}'
    )
  kept = slice(every - 1, None, every)
  return dataclasses.replace(
    population,
    losses=population.losses[:, kept],
    settings=population.settings[kept],
    mean_exit_layers=population.mean_exit_layers[kept],
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Calibrates, writes and prints."""
  flags = _parse(arguments)
  measured_rows.publish_simulated(lambda: _measure(flags), flags, table)


if __name__ == '__main__':
  main()

"""How often is a watched certificate doubted wrongly, and how late rightly?

  python -m calm_jax.benchmarks.monitor_delays --output=delays.json

Simulated audits: losses with a known mean, which stays below the tolerance,
lies on it, drifts above it or jumps above it after some hundreds of audits.
Counted are streams with an alarm while the mean is tolerable, and audits from
there on until the alarm, under both guarantees of `calibration.LossWatch`.
NumPy and SciPy only; a minute or so on one core.
"""

import argparse
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from calm_jax.benchmarks import loss_laws, measured_rows
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.monitor_delays_table import (
  ERROR_RATES,
  SCENARIOS,
  DelayRow,
  table,
)
from calm_jax.calibration import LossWatch


def measure(
  *,
  laws: Sequence[str] = ('beta', 'bernoulli'),
  tolerance: float = 0.1,
  streams: int = 1000,
  before: int = 500,
  after: int = 2500,
  seed: int = 0,
) -> Iterator[DelayRow]:
  """Yields rows: every law, scenario and guarantee.

  Args:
    laws: keys of `loss_laws.LAWS`, of losses in [0, 1].
    tolerance: of the losses, in (0, 0.25).
    streams: simulated streams of audits.
    before: audits before the change.
    after: audits from there on.
    seed: of the draws.

  Raises:
    ValueError: for an unknown law or a number outside its range.
  """
  for name, number in (('streams', streams), ('after', after)):
    if number < 1:
      raise ValueError(f'{name} is {number}; give 1 or more')
  if not 0 < tolerance < 0.25:
    raise ValueError(
      f'tolerance is {tolerance:g}; give a number between 0 and 0.25, as the '
      'mean jumps to four times that'
    )
  for law in laws:
    if law not in loss_laws.LAWS:
      raise ValueError(f'{law!r} is none of {", ".join(loss_laws.LAWS)}')
    of_share = functools.cache(
      lambda share, law=law: loss_laws.LAWS[law].of_risk(tolerance * share)
    )
    # What the mean really is, to the last digit.
    mean = float(of_share(1.0).mean())
    for name, scenario in SCENARIOS.items():
      rng = np.random.default_rng([seed, len(name)])
      shares = [
        scenario.share(max(0, place - before + 1))
        for place in range(before + after)
      ]
      losses = np.stack(
        [rng.choice(of_share(share), size=streams) for share in shares], axis=1
      )
      for guarantee, error_rate in ERROR_RATES.items():
        watch = LossWatch(
          tolerance=mean,
          error_rate=error_rate,
          loss_range=loss_laws.LAWS[law].loss_range,
          guarantee=guarantee,
        )
        yield DelayRow(
          law, name, guarantee, error_rate, *_counted(watch, losses, shares)
        )


def _counted(
  watch: LossWatch, losses: np.ndarray, shares: Sequence[float]
) -> tuple[float, float, float, float]:
  """Returns false alarms, found ones, and their delays."""
  raised = watch.log_evidence(losses) >= math.log(watch.bound)
  first = np.where(raised.any(axis=1), raised.argmax(axis=1), np.inf)
  above = next((n for n, share in enumerate(shares) if share > 1), len(shares))
  false = first < above
  delays = first[~false] - above + 1
  if above == len(shares) or not delays.size:
    return float(false.mean()), math.nan, math.nan, math.nan

  def quantile(share):
    found = float(np.quantile(delays, share, method='inverted_cdf'))
    return found if math.isfinite(found) else math.nan

  found = float(np.isfinite(delays).mean())
  return float(false.mean()), found, quantile(0.5), quantile(0.9)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('monitor_delays', __doc__)
  add = parser.add
  add('laws', 'beta,bernoulli', 'what losses look like, separated by commas')
  add('tolerance', 0.1, 'what their mean may be at most', type=float)
  add('streams', 1000, 'simulated streams of audits', type=int)
  add('before', 500, 'audits before the mean changes', type=int)
  add('after', 2500, 'audits from there on', type=int)
  add('seed', 0, 'of the simulations', type=int)
  add('output', None, 'a JSON file to write the rows to')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  measured_rows.publish_simulated(
    lambda: measure(
      laws=flags.laws.split(','),
      tolerance=flags.tolerance,
      streams=flags.streams,
      before=flags.before,
      after=flags.after,
      seed=flags.seed,
    ),
    flags,
    table,
  )


if __name__ == '__main__':
  main()

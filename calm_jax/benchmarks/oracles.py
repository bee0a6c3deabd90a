"""Skips layers, leaves early, and asks how far the best choice per input gets.

  python -m calm_jax.benchmarks.oracles --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --output=oracles.json

A route is a set of decoder layers that run for all tokens of an output: the
first n, n that lie evenly, or n at random. All routes decode the same inputs of
a token file (see calm_jax.cli.tokenize), greedily and with sampled outputs.
Under budgets of mean layers the table holds, beside these families and the best
single route, an oracle that knows how good every output is and picks one route
per input ("Dynamic layer selection in decoder-only transformers", arXiv
2410.20022). What of that is luck is measured: routes chosen by one half of the
sampled outputs are judged by the other half, and an oracle chooses after what
routes are to single inputs has been dealt out to others.

The scores of a route are kept in RUN_DIR/oracles (or --keep) as soon as it is
decoded, and found again by whoever asks for the same. Needs no gin, seqio or
TensorFlow, but rouge-score (the extra `metrics`).

  python -m calm_jax.benchmarks.oracles --show=a.json,b.json \
    --picture=oracles.png

makes one table and one picture of several runs.
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence

import jax

from calm_jax import checks, records, reporting, runs
from calm_jax.benchmarks import (
  measured_rows,
  oracle_rows,
  oracles_table,
  routes,
  text_inputs,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.route_scores import RouteScorer, Sampling
from calm_jax.records import OracleRow

_FOLDER = 'oracles'


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('oracles', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('title', None, 'what the table calls it; its folder if not given')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('num_inputs', 200, 'inputs that are decoded', type=int)
  add('budgets', None, 'numbers of layers, by commas; all if not given')
  add('random_routes', 10, 'random routes of each number', type=int)
  add('num_samples', 8, 'sampled outputs of a route; 0 for none', type=int)
  add('temperature', 0.7, 'of the sampled outputs', type=float)
  add('num_splits', 10, 'into halves of these', type=int)
  add('max_length', None, 'most tokens of an output; as trained', type=int)
  add('metric', None, 'of the scores; by the alphabet if not given')
  add('seed', 0, 'of routes, outputs and splits', type=int)
  add('keep', None, 'a folder for scores; in run_dir if not given')
  add('output', None, 'a JSON file to write')
  add('show', None, 'print these JSON files, by commas, and measure nothing')
  add('picture', None, 'an image file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens, or --show')
  for name, low in (
    ('num_inputs', 1),
    ('random_routes', 0),
    ('num_samples', 0),
    ('num_splits', 1),
    ('seed', 0),
    ('max_length', 1),
  ):
    if getattr(flags, name) is not None:
      checks.check_whole(getattr(flags, name), name, low=low)
  if flags.num_samples == 1:
    raise ValueError(
      'num_samples is 1, which has no halves; give 2 or more, or 0 for none'
    )
  # Written as a negation, so that NaN is refused.
  if not 0 < flags.temperature < float('inf'):
    raise ValueError(f'temperature is {flags.temperature}; it must be positive')


def _budgets(text: str | None, num_layers: int) -> list[int]:
  """Returns numbers of layers, rising.

  Raises:
    ValueError: for what is none, or not in 1..L.
  """
  if text is None:
    return list(range(1, num_layers + 1))
  try:
    found = sorted({int(number) for number in text.split(',')})
  except ValueError:
    raise ValueError(
      f'budgets are {text!r}; give whole numbers of layers, such as 2,4'
    ) from None
  for number in found:
    checks.check_whole(number, 'budget', low=1, high=num_layers)
  return found


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  run = runs.load_run(flags.run_dir)
  num_layers = run.config.num_decoder_layers
  budgets = _budgets(flags.budgets, num_layers)
  inputs = text_inputs.read_inputs(
    flags.tokens,
    run,
    number=flags.num_inputs,
    max_length=flags.max_length,
    metric=flags.metric,
  )
  flags.num_inputs = len(inputs.sources)
  drawn = functools.partial(
    routes.random_routes,
    num_layers=num_layers,
    count=flags.random_routes,
    seed=flags.seed,
  )
  scorer = RouteScorer(
    run,
    inputs,
    Sampling(flags.num_samples, flags.temperature, flags.seed),
    folder=flags.keep or os.path.join(flags.run_dir, _FOLDER),
  )
  scores = scorer.score(
    routes.all_families(
      num_layers, depths=budgets, count=flags.random_routes, seed=flags.seed
    ),
    progress=functools.partial(print, file=sys.stderr, flush=True),
  )
  rows = oracle_rows.rows_of(
    scores,
    budgets,
    run=flags.title or os.path.basename(os.path.normpath(flags.run_dir)),
    metric=inputs.metric,
    random_routes=[route for number in budgets for route in drawn(number)],
    num_splits=flags.num_splits,
    seed=flags.seed,
  )
  return measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=run.config.dtype,
    num_routes=len(scores.routes),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    if flags.show is None:
      measured = [_run(flags)]
    else:
      paths = flags.show.split(',')
      measured = [measured_rows.read(path, OracleRow) for path in paths]
  except (OSError, ValueError) as error:
    sys.exit(f'oracles: {error}')
  if flags.output:
    records.write_json(flags.output, measured[0])
  print(reporting.tables.with_notes(oracles_table.table(*measured)))
  if flags.picture:
    rows = [row for one in measured for row in one.rows]
    reporting.save_figure(reporting.oracle_figure(rows), flags.picture)


if __name__ == '__main__':
  main()

"""Asks how far the best choice of feed-forwards per token gets, and by luck.

  python -m calm_jax.benchmarks.twin_oracles --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --output=twin_oracles.json

The run has small twins (`calm_jax.cli.train_twins`). Teacher forced with the
targets of a token file, every pattern of the decoder's feed-forwards, each
layer with none, its own or its twin, gives each token a log-probability: all
patterns of up to 6 layers, drawn ones of more. Under budgets of mean blocks the
table holds the best single pattern, the best blind mix of two, and an oracle
that picks one pattern per token by its label, as in Duo-LLM (arXiv 2410.10846).
What of the oracle's gain is the winner's curse says the same oracle on permuted
labels, and one after what patterns are to single tokens has been dealt out to
others. With --router=twin_router stands beside them what a trained router
(`calm_jax.cli.train_twin_router`) comes to at the same cost. Needs neither gin,
seqio nor TensorFlow.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import checks, runs, training
from calm_jax.benchmarks import (
  measured_rows,
  twin_oracle_rows,
  twin_oracles_table,
  twin_patterns,
  twin_router_scores,
  twin_scores,
)
from calm_jax.benchmarks.arguments import Arguments


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('twin_oracles', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory with small twins')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('twins', 'small_twins', 'their folder in run_dir')
  add('router', None, 'the folder of a router of them; none if not given')
  add('num_tokens', 300, 'target tokens that are scored', type=int)
  add('num_patterns', 300, 'patterns drawn, of over 6 layers', type=int)
  add('num_permutations', 3, 'of the labels', type=int)
  add('batch_size', 16, 'rows of a pass', type=int)
  add('seed', 0, 'of patterns and permutations', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens')
  for name in ('num_tokens', 'num_patterns', 'num_permutations', 'batch_size'):
    checks.check_whole(getattr(flags, name), name, low=1)
  checks.check_whole(flags.seed, 'seed', low=0)


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  run = runs.load_run(flags.run_dir)
  config, twins = run.config, runs.load_twins(flags.run_dir, name=flags.twins)
  patterns = twin_patterns.patterns_of(
    config.num_decoder_layers, count=flags.num_patterns, seed=flags.seed
  )
  router = None
  if flags.router is not None:
    router = runs.load_twin_router(
      flags.run_dir, name=flags.router, twins=flags.twins
    )
  batches = twin_scores.first_tokens(
    training.npz_batches(
      flags.tokens,
      flags.batch_size,
      feature_lengths=run.feature_lengths,
      shuffle=False,
      num_epochs=1,
    ),
    flags.num_tokens,
  )
  scores, permuted = twin_scores.label_scores(
    config,
    run.params,
    twins,
    batches,
    patterns,
    num_permutations=flags.num_permutations,
    rng=np.random.default_rng(flags.seed),
  )
  flags.num_tokens = len(scores)
  rows = twin_oracle_rows.rows_of(
    patterns,
    scores,
    permuted,
    own_units=config.mlp_dim,
    twin_units=twins.hidden_units,
    run=os.path.basename(os.path.normpath(flags.run_dir)),
    seed=flags.seed,
  )
  if router is not None:
    found = twin_router_scores.router_scores(
      config, run.params, twins, router, batches, [row.budget for row in rows]
    )
    rows = [
      dataclasses.replace(row, router=score)
      for row, score in zip(rows, found, strict=True)
    ]
  return measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    num_patterns=len(patterns),
    twin_units=twins.hidden_units,
    own_units=config.mlp_dim,
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    measured = _run(flags)
  except (OSError, ValueError) as error:
    sys.exit(f'twin_oracles: {error}')
  measured_rows.publish(measured, twin_oracles_table.table, flags.output)


if __name__ == '__main__':
  main()

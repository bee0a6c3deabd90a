"""Tokens per second by way of batching: the rows, and their table."""

import dataclasses
import os

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class ThroughputRow:
  """Tokens per second of one way of batching.

  Attributes:
    policy: 'full model' or the early exit.
    way: 'static', 'sorted' or 'slots', see `calm_jax.benchmarks.throughput`.
    tokens_per_second: emitted tokens over wall clock, encoder included.
    speed_up: over the full model in static batches.
    num_tokens: emitted tokens, EOS included.
  """

  policy: str
  way: str
  tokens_per_second: float
  speed_up: float
  num_tokens: int


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs."""
  rows = [
    (
      os.path.basename(os.path.normpath(one.flags['run_dir'])),
      row.policy,
      row.way,
      f'{row.tokens_per_second:.0f}',
      f'{row.speed_up:.2f}x',
    )
    for one in measured
    for row in one.rows
  ]
  first = measured[0]
  return tables.Table(
    header=('run', 'decoding', 'batching', 'tokens per second', 'speed-up'),
    rows=tuple(rows),
    notes=(
      'tokens per second: emitted tokens over wall clock, encoder included, in '
      f'batches and slots of {first.flags["batch_size"]}, median of '
      f'{first.flags["num_repeats"]} turns, on {first.machine}.',
      'speed-up: against the full model decoded without any checks in static '
      'batches.',
    ),
  )

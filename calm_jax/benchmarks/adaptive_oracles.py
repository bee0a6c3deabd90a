"""Oracles of `benchmarks.oracles` as rows beside adaptive systems."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from calm_jax.benchmarks import measured_rows
from calm_jax.records import ORACLE_SYSTEM, OracleRow, SystemRow


def rows_of(
  path: str,
  names: tuple[str, str],
  *,
  run_dir: str,
  tokens: str,
  max_length: int,
  trained_length: int,
  num_inputs: int,
  metric: str,
  cost_of_layers: Callable[[float], float],
) -> Iterator[SystemRow]:
  """Yields a row per budget: the best route of each input by its own scores.

  The oracle of quality and that of consistency are two, each at its best.

  Args:
    path: a JSON file of `python -m calm_jax.benchmarks.oracles`.
    names: of the data and of the model, for the rows.
    run_dir: of the run that everything else is of.
    tokens: the token file that everything else decodes.
    max_length: T of everything else.
    trained_length: T of oracles that were given none.
    num_inputs: as everything else decodes.
    metric: of everything else.
    cost_of_layers: mean layers -> arithmetic over the full model's.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is about another run or other inputs, or by another
      metric.
  """
  measured = measured_rows.read(path, OracleRow)
  _check_same(
    path,
    measured.flags,
    {'run_dir': run_dir, 'tokens': tokens, 'max_length': max_length},
    trained_length=trained_length,
  )
  greedy = [row for row in measured.rows if row.decoding == 'greedy']
  found = measured.flags.get('num_inputs'), {row.metric for row in greedy}
  if found != (num_inputs, {metric}):
    raise ValueError(
      f'{path} has oracles over {found[0]} inputs by {sorted(found[1])}, not '
      f'{num_inputs} by {metric}; run benchmarks.oracles with --num_inputs='
      f'{num_inputs} --metric={metric}'
    )
  scores = {(row.score, row.budget): row for row in greedy}
  for budget in sorted({row.budget for row in greedy}):
    best = scores['quality', budget]
    near = scores.get(('consistency', budget))
    run, model = names
    yield SystemRow(
      run=run,
      model=model,
      system=ORACLE_SYSTEM,
      setting=f'{budget:g} layers on the mean',
      policy='',
      outcomes=(),
      error_rate=math.nan,
      distance=math.nan if near is None else 1 - near.oracle,
      quality=100 * best.oracle,
      metric=metric,
      mean_layers=best.mean_layers,
      flops=cost_of_layers(best.mean_layers),
      bytes=math.nan,
    )


def _check_same(
  path: str,
  flags: dict[str, Any],
  wanted: dict[str, Any],
  *,
  trained_length: int,
) -> None:
  """Checks the flags of oracles, where they are recorded.

  Raises:
    ValueError: naming the first that differs.
  """
  for name, new in wanted.items():
    if name not in flags:
      continue
    old = flags[name]
    if name == 'max_length':
      same = (old or trained_length) == new
    else:
      same = os.path.realpath(old) == os.path.realpath(new)
    if not same:
      raise ValueError(
        f'{path} has oracles of --{name}={old}, not {new}; run '
        f'benchmarks.oracles with --{name}={new}'
      )

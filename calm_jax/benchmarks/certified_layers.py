"""How deep does a certificate let decode, by loss and p-value, on public data?

  git clone https://github.com/metodj/RC-EENN
  python -m calm_jax.benchmarks.certified_layers \
    --scores=RC-EENN/calm/data/calm_cnndm.p

Calibrates on draws of a table of scores that others have published: of a CALM
T5-large on CNN/DM, 2,000 inputs at 100 thresholds, by Jazbec et al., "Fast yet
Safe" (arXiv 2405.20915). The quality that an input loses to the full model is
bounded clipped at 0 per input (`risk`, the paper's) or as it is (`signed`).
Both are measured against the table's threshold of 1; where nothing is
certified, all layers count. Shown is the mean over draws of the certified
layers; beside it what somebody would choose who knew the risks. NumPy and SciPy
only; of the file nothing but arrays of numbers is unpickled.
"""

import argparse
import dataclasses
import os
import pickle
import sys
from collections.abc import Sequence

import numpy as np

from calm_jax import calibration
from calm_jax.benchmarks import measured_rows
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.calibration import choices, violations
from calm_jax.calibration.population import Population
from calm_jax.reporting import tables

# The paper's first, then what is taken if nobody says.
TESTS = (
  ('risk', 'hoeffding_bentkus'),
  ('risk', 'betting'),
  ('signed', 'betting'),
)
# What a pickle of arrays and floats refers to; nothing else is looked up.
_ARRAYS = {
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy.core.multiarray', 'scalar'),
  ('numpy._core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', 'scalar'),
}


@dataclasses.dataclass(frozen=True)
class LayersRow:
  """What one test certifies at one tolerance, with so many examples.

  Attributes:
    tolerance: the bound on the mean quality lost.
    num_examples: n, the rows of a draw.
    loss: 'risk' or 'signed'.
    p_value: its name.
    mean_layers: mean over the draws of the certified setting's layers; those of
      the full model where nothing was certified.
    best_layers: those of the most aggressive setting whose risk, and that of
      all before it, is within the tolerance.
    violation_rate: the share of the draws whose choice has a risk above it.
  """

  tolerance: float
  num_examples: int
  loss: str
  p_value: str
  mean_layers: float
  best_layers: float
  violation_rate: float


class _ArraysOnly(pickle.Unpickler):
  """Reads arrays, and refuses whatever else a pickle might call."""

  def find_class(self, module: str, name: str):
    if (module, name) not in _ARRAYS:
      raise ValueError(f'it refers to {module}.{name}, which is no array')
    return super().find_class(module, name)


def read_scores(
  path: str | os.PathLike,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads thresholds [J], mean exit layers [J] and scores [J, N].

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no pickle of these three.
  """
  try:
    with open(path, 'rb') as file:
      thresholds, layers, scores = map(np.asarray, _ArraysOnly(file).load())
  except (ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
    raise ValueError(
      f'{os.fspath(path)} is no pickle of thresholds, exit layers and scores '
      f'({error})'
    ) from None
  if not (len(thresholds) == len(layers) == len(scores)) or scores.ndim != 2:
    raise ValueError(
      f'{os.fspath(path)} has {thresholds.shape} thresholds, {layers.shape} '
      f'exit layers and {scores.shape} scores; expected [J], [J] and [J, N]'
    )
  return thresholds, layers, scores


def populations(
  thresholds: np.ndarray,
  layers: np.ndarray,
  scores: np.ndarray,
  *,
  num_layers: int,
) -> dict[str, Population]:
  """Returns the losses of every setting, against the outputs of the first.

  Args:
    thresholds: [J], descending from 1.
    layers: [J], layers per token.
    scores: [J, N], in [0, 1], higher is better.
    num_layers: L, what counts where nothing is certified.

  Raises:
    ValueError: for thresholds or scores that are none.
  """
  signed = (scores[0] - scores[1:]).T
  about = dict(
    settings=[float(threshold) for threshold in thresholds[1:]],
    mean_exit_layers=layers[1:],
    num_layers=num_layers,
  )
  return {
    'risk': Population(np.maximum(signed, 0.0), **about),
    'signed': Population(signed, loss_range=(-1.0, 1.0), **about),
  }


def measure(
  tables_of: dict[str, Population],
  *,
  tolerances: Sequence[float],
  sizes: Sequence[int],
  error_rate: float = 0.05,
  num_draws: int = 100,
  seed: int = 0,
) -> list[LayersRow]:
  """Calibrates on draws by every test, the same draws for all.

  Args:
    tables_of: 'risk' and 'signed' -> their table.
    tolerances: bounds on the mean quality lost.
    sizes: numbers of examples.
    error_rate: how often a certificate may be wrong.
    num_draws: calibrations per row.
    seed: of the draws.
  """
  rows = []
  for tolerance in tolerances:
    for size in sizes:
      for loss, p_value in TESTS:
        table = tables_of[loss]
        count = violations.count_violations(
          table,
          tolerance=tolerance,
          statistics=choices.Statistics(
            error_rate=error_rate, p_value=calibration.P_VALUES[p_value]
          ),
          num_draws=num_draws,
          draw_size=size,
          seed=seed,
        )
        rows.append(
          LayersRow(
            tolerance=tolerance,
            num_examples=size,
            loss=loss,
            p_value=p_value,
            mean_layers=count.mean_exit_layer,
            best_layers=_best(table, tolerance),
            violation_rate=count.rate,
          )
        )
        print(rows[-1], file=sys.stderr, flush=True)
  return rows


def _best(table: Population, tolerance: float) -> float:
  """Returns the layers of whoever knows the risks, and tests in order."""
  within = ~table.above(table.risks, tolerance)
  kept = int(np.argmin(within)) if not within.all() else within.size
  return float(table.of_choices(np.array([kept - 1]))[1][0])


def table(measured: Measured) -> tables.Table:
  """Returns a line per tolerance and number of examples, a column per test."""
  cells: dict[tuple[float, int], dict] = {}
  for row in measured.rows:
    line = cells.setdefault((row.tolerance, row.num_examples), {})
    line[row.loss, row.p_value] = f'{row.mean_layers:.1f}'
    line[row.loss] = f'{row.best_layers:.1f}'
  return tables.Table(
    header=(
      'tolerance',
      'examples',
      *(f'{loss}, {p_value}' for loss, p_value in TESTS),
      'risk, if known',
      'signed, if known',
    ),
    rows=tuple(
      (
        f'{tolerance:g}',
        f'{size:,}',
        *(line[test] for test in TESTS),
        line['risk'],
        line['signed'],
      )
      for (tolerance, size), line in cells.items()
    ),
    notes=(
      'layers per token that are certified, mean of '
      f'{measured.flags["draws"]} draws with replacement; if known: at the '
      'most aggressive threshold whose risk is within the tolerance. Where '
      f'nothing was, all {measured.flags["num_layers"]}.',
    ),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Calibrates, writes and prints."""
  parser = Arguments('certified_layers', __doc__)
  parser.add('scores', None, 'the pickle of scores', required=True)
  parser.add('num_layers', 24, 'decoder layers of the model', type=int)
  parser.add('tolerances', '0.02,0.05', 'of the quality lost, by commas')
  parser.add('sizes', '300,1000', 'examples of a calibration, by commas')
  parser.add('error_rate', 0.05, 'how often it may be wrong', type=float)
  parser.add('draws', 400, 'calibrations per row', type=int)
  parser.add('output', None, 'a JSON file to write')
  flags: argparse.Namespace = parser.parse_args(arguments)
  try:
    rows = measure(
      populations(*read_scores(flags.scores), num_layers=flags.num_layers),
      tolerances=[float(text) for text in flags.tolerances.split(',')],
      sizes=[int(text) for text in flags.sizes.split(',')],
      error_rate=flags.error_rate,
      num_draws=flags.draws,
    )
  except (OSError, ValueError) as error:
    sys.exit(f'certified_layers: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device='cpu', dtype='float64'
  )
  measured_rows.publish(measured, table, flags.output)


if __name__ == '__main__':
  main()

"""What 8 bits do to a model: the errors, and their tables."""

import dataclasses
import math

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class MatrixError:
  """What 8 bits do to the products with one matrix; errors are relative.

  Attributes:
    path: as `Int8Weights.keep` has it.
    both: ||x W - Q(x) Q(W)|| / ||x W||, over all real positions together.
    weights_alone: of x Q(W).
    states_alone: of Q(x) W.
    outlier: the largest |x| over the median root mean square of a position.
    smoothed: `both` after smoothing; NaN without.
  """

  path: str
  both: float
  weights_alone: float
  states_alone: float
  outlier: float
  smoothed: float = math.nan


@dataclasses.dataclass(frozen=True)
class ModelError:
  """What 8 bits do to the whole model, teacher forced and decoding.

  Attributes:
    name: which matrices are in 8 bits.
    keep: the expressions of those left in float.
    num_kept: how many these are.
    logits: ||logits - logits in 8 bits|| / ||logits||, over all real positions.
    other_argmax: share of these at which another token has the largest logit.
    other_outputs: share of inputs whose greedy output at full depth differs.
    distance: mean textual loss of these outputs against the float model's.
  """

  name: str
  keep: tuple[str, ...]
  num_kept: int
  logits: float
  other_argmax: float
  other_outputs: float
  distance: float


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything of one model.

  Attributes:
    model: the run or the shape.
    num_positions: real positions of the decoder.
    matrices: the largest error first.
    models: in the order they were asked for.
  """

  model: str
  num_positions: int
  matrices: tuple[MatrixError, ...]
  models: tuple[ModelError, ...]


def matrix_table(measured: Measured) -> tables.Table:
  """Returns the table of matrices, the largest error first."""
  matrices = [one for report in measured.rows for one in report.matrices]
  with_smoothing = any(math.isfinite(one.smoothed) for one in matrices)
  header = ['matrix', 'error %', 'weights alone', 'states alone', 'outlier']
  notes = [
    'error: of the products with the matrix in 8 bits, relative to those in '
    f'float, over {measured.rows[0].num_positions} positions (of the source '
    'for what reads the source); from rounding weights alone, states alone.',
    'outlier: the largest number of the states over the median root mean '
    'square of a position.',
  ]
  if with_smoothing:
    header.append('smoothed %')
    notes.append(
      'smoothed: the error with scales moved from states into weights, '
      f'{measured.flags["smoothing"]:g} of the way; where a norm stands before '
      'the matrix.'
    )
  rows = []
  for one in matrices:
    errors = [one.both, one.weights_alone, one.states_alone]
    cells = [f'{100 * error:.2f}' for error in errors]
    cells.append(f'{one.outlier:.1f}')
    cells += [f'{100 * one.smoothed:.2f}'] if with_smoothing else []
    rows.append((one.path, *cells))
  return tables.Table(tuple(header), tuple(rows), tuple(notes))


def model_table(*measured: Measured) -> tables.Table:
  """Returns the table of whole models, of one or several runs."""
  return tables.Table(
    header=(
      'in 8 bits',
      'kept in float',
      'logits %',
      'other argmax %',
      'other outputs %',
      'distance',
    ),
    rows=tuple(
      (
        f'{report.model}: {one.name}',
        str(one.num_kept),
        f'{100 * one.logits:.2f}',
        f'{100 * one.other_argmax:.2f}',
        f'{100 * one.other_outputs:.1f}',
        f'{one.distance:.4f}',
      )
      for run in measured
      for report in run.rows
      for one in report.models
    ),
    notes=(
      'kept in float: matrices of those looked at.',
      'logits: their error, relative to the float model, teacher forced.',
      'other argmax: positions at which another token comes first.',
      'other outputs, distance: of greedy outputs at full depth; those that '
      "differ from the float model's, and their mean textual loss.",
    ),
  )

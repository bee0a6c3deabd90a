"""What exact keys and values are worth: the rows, and their table."""

import dataclasses
import math
import os

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class ExactnessRow:
  """One way of decoding at one threshold.

  Attributes:
    way: 'full model', or where K/V of layers not run come from: 'projected',
      'exact', or 'verified' where drafts are checked on top of that; or where
      these come from: 'draft head', 'first 2 layers in 8 bits'; or another
      program, whose outputs are compared where they were timed.
    threshold: of the softmax margin; NaN where there is none.
    mean_exit_layer: layers after which tokens left, 1..L.
    layers_run: per token, with those run later beside other tokens.
    distance: mean textual loss (1 - ROUGE-L) to the full model's outputs.
    same_outputs: share of outputs that are the full model's to the token.
    accepted: drafts that a check keeps, on average; NaN without checks.
    milliseconds_per_token: wall clock at batch 1, encoder included.
    speed_up: of the full model over it.
  """

  way: str
  threshold: float
  mean_exit_layer: float
  layers_run: float
  distance: float
  same_outputs: float
  accepted: float
  milliseconds_per_token: float
  speed_up: float


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs."""
  rows = [
    (
      os.path.basename(os.path.normpath(one.flags['run_dir'])),
      tables.number(row.threshold, 2),
      row.way,
      f'{row.mean_exit_layer:.2f}',
      f'{row.layers_run:.2f}',
      '-' if math.isnan(row.distance) else f'{row.distance:.4f}',
      f'{100 * row.same_outputs:.1f}',
      '-' if math.isnan(row.accepted) else f'{row.accepted:.1f}',
      f'{row.milliseconds_per_token:.2f}',
      f'{row.speed_up:.2f}x',
    )
    for one in measured
    for row in one.rows
  ]
  first = measured[0]
  return tables.Table(
    header=(
      'run',
      'threshold',
      'K/V',
      'exit layer',
      'layers run',
      'distance',
      'same outputs %',
      'drafts kept',
      'ms per token',
      'speed-up',
    ),
    rows=tuple(rows),
    notes=(
      'distance: mean of 1 - ROUGE-L between the output and the full '
      f"model's, over {first.flags['num_inputs']} inputs.",
      'layers run: per token, with those that ran later beside other tokens.',
      'drafts kept: by a check, on average.',
      'ms per token: at batch 1, encoder included, over '
      f'{first.flags["timed_inputs"]} of the inputs, the median of '
      f'{first.flags["num_repeats"]} turns, each way by its fastest fill, on '
      f'{first.machine}. {tables.SPEED_UP_NOTE}.',
    ),
  )

"""What checked drafts are worth: the rows, and their table."""

import dataclasses

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class DraftingRow:
  """One number of drafts at one acceptance.

  Attributes:
    shape: the model.
    exit_layer: where drafts leave; L for the full model.
    drafts: the most between two checks; 0 for the full model.
    candidates: over how many first ids drafts are read; 0 for all of them.
    accepted: share of the drafts that stayed, of those up to the first in each
      check that did not.
    tokens_per_check: tokens of the output per check.
    same_tokens: whether the output is the full model's.
    milliseconds_per_token: wall clock without the encoder, batch 1.
    speed_up: of the full model over it.
  """

  shape: str
  exit_layer: int
  drafts: int
  candidates: int
  accepted: float
  tokens_per_check: float
  same_tokens: bool
  milliseconds_per_token: float
  speed_up: float


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs."""
  rows = [
    (
      row.shape,
      str(row.drafts) if row.drafts else 'full model',
      str(row.exit_layer),
      (str(row.candidates) if row.candidates else 'all') if row.drafts else '-',
      f'{100 * row.accepted:.0f}' if row.drafts else '-',
      f'{row.tokens_per_check:.1f}' if row.drafts else '-',
      'yes' if row.same_tokens else 'NO',
      f'{row.milliseconds_per_token:.2f}',
      f'{row.speed_up:.2f}x',
    )
    for one in measured
    for row in one.rows
  ]
  first = measured[0]
  return tables.Table(
    header=(
      'shape',
      'drafts',
      'exit layer',
      'read over',
      'accepted %',
      'tokens per check',
      'same tokens',
      'ms per token',
      'speed-up',
    ),
    rows=tuple(rows),
    notes=(
      'accepted: share of drafts that stayed, of those up to the first that '
      'did not; upper layers say less.',
      'ms per token: wall clock without the encoder at batch 1, over '
      f'{first.flags["target_length"]} tokens, the median of '
      f'{first.flags["num_repeats"]} turns, on {first.machine}.',
    ),
  )

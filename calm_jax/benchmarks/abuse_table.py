"""The table of a test of abuse: what inputs of each kind cost."""

import dataclasses

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class AbuseRow:
  """What inputs of one kind cost under one policy.

  Attributes:
    inputs: 'real', 'shuffled', 'random', or what they were searched for by, see
      `abuse_rows.searches`.
    budget: whether the policy has the budget.
    num_tokens: emitted tokens, EOS included.
    mean_exit_layer: layers per token, 1..L.
    saving: 1 - mean_exit_layer / L, in [0, 1).
    saving_lost: the share of the saving on real inputs without the budget that
      is not there; below 0 where more is saved.
    mean_request: layers per output.
    largest_request: the most layers that an output took.
    largest_token: the most layers that a token took.
    same_outputs: share in [0, 1] of the outputs that are the same without the
      budget.
    use: how far the budget was used, None without one.
    replaced: mean share in [0, 1] of the tokens before EOS that are others than
      those of the real input; None where nobody asked, as below.
    meaning_kept: how alike is what the full model says of these inputs to what
      it says of the real ones, in [0, 1]: token F1 of texts, equality of
      classes.
  """

  inputs: str
  budget: bool
  num_tokens: int
  mean_exit_layer: float
  saving: float
  saving_lost: float
  mean_request: float
  largest_request: int
  largest_token: int
  same_outputs: float
  use: records.BudgetUse | None
  replaced: float | None = None
  meaning_kept: float | None = None


_JUDGED = (
  'replaced: tokens that are others than in the real input, on the mean.',
  'meaning kept: how alike is what the full model says of them to what it says '
  'of the real inputs: token F1 of texts, equality of classes.',
)


def table(measured: Measured) -> tables.Table:
  """Returns the table."""
  judged = all(row.replaced is not None for row in measured.rows)
  return tables.Table(
    header=(
      'inputs',
      *(('replaced', 'meaning kept') if judged else ()),
      'budget',
      'layers per token',
      'saving',
      'of it lost',
      'layers per output',
      'at most',
      'outputs stopped',
      'same outputs',
    ),
    rows=tuple(_cells(row, judged) for row in measured.rows),
    notes=(
      *(_JUDGED if judged else ()),
      'of it lost: the share of the saving on real inputs (without a budget) '
      'that is not there.',
      'at most: the layers of the dearest output.',
      'outputs stopped: those with a token that the budget stopped before the '
      'rule would.',
    ),
  )


def _cells(row: AbuseRow, judged: bool) -> tuple[str, ...]:
  use = row.use
  # No minus sign before a zero.
  lost = round(row.saving_lost, 2) + 0.0
  at_most, stopped = f'{row.largest_request}', '-'
  if use is not None:
    stopped = f'{use.capped_requests:.0%}'
    if use.per_request is not None:
      at_most += f' of {use.per_request}'
  return (
    row.inputs,
    *((f'{row.replaced:.0%}', f'{row.meaning_kept:.0%}') if judged else ()),
    'yes' if row.budget else 'no',
    f'{row.mean_exit_layer:.2f}',
    f'{row.saving:.0%}',
    f'{lost:.0%}',
    f'{row.mean_request:.0f}',
    at_most,
    stopped,
    f'{row.same_outputs:.0%}',
  )

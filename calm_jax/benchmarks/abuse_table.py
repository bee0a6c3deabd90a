"""The table of a test of abuse: what inputs of each kind cost."""

import dataclasses

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class AbuseRow:
  """What inputs of one kind cost under one policy.

  Attributes:
    inputs: 'real', 'shuffled', 'random', or 'searched' for the most layers per
      token or per output.
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


def table(measured: Measured) -> tables.Table:
  """Returns the table."""
  return tables.Table(
    header=(
      'inputs',
      'budget',
      'layers per token',
      'saving',
      'of it lost',
      'layers per output',
      'at most',
      'outputs stopped',
      'same outputs',
    ),
    rows=tuple(map(_cells, measured.rows)),
    notes=(
      'of it lost: the share of the saving on real inputs (without a budget) '
      'that is not there.',
      'at most: the layers of the dearest output.',
      'outputs stopped: those with a token that the budget stopped before the '
      'rule would.',
    ),
  )


def _cells(row: AbuseRow) -> tuple[str, ...]:
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
    'yes' if row.budget else 'no',
    f'{row.mean_exit_layer:.2f}',
    f'{row.saving:.0%}',
    f'{lost:.0%}',
    f'{row.mean_request:.0f}',
    at_most,
    stopped,
    f'{row.same_outputs:.0%}',
  )

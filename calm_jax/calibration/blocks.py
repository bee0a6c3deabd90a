"""Calibration from tables that grow by blocks of rows: `AnytimeSequence`.

`next_block` says which losses are needed next, `calibrate_in_blocks` what is
certified once none are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.calibration import anytime, inputs, joint, p_values, reasons
from calm_jax.calibration.anytime import AnytimeSequence
from calm_jax.calibration.bounds import Bound
from calm_jax.calibration.certificate import Certificate
from calm_jax.calibration.running_tests import Block, RunningTests, run_tests

# Where the context of a certificate has the rows that were looked at.
ROWS = 'anytime_rows'


def next_block(
  losses: Sequence[np.ndarray],
  *,
  promises: Sequence[Bound],
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  procedure: AnytimeSequence,
) -> Block | None:
  """Returns the losses that are needed next, None if none are.

  Args:
    losses: K tables [N, J], N the most rows that there may be, in the `order`
      of the p-value; NaN where not computed yet, in the same places of all.
    promises: as for `calibrate_jointly`, and so are the others.
    error_rate: see `calibrate`.
    p_value: betting if None; one that may be looked at while losses come in.
    procedure: what is looked at when.

  Raises:
    ValueError: as `calibrate_jointly`; for a p-value that holds for a fixed
      number of rows alone.
  """
  tables, promises = joint.tables_in_order(losses, promises)
  p_value = p_value or joint.default_of(promises)
  return run_tests(tables, promises, error_rate, p_value, procedure).needed


def calibrate_in_blocks(
  losses: Sequence[np.ndarray],
  settings: Sequence[float | dict],
  promises: Sequence[Bound],
  *,
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  procedure: AnytimeSequence,
  number: int | None = None,
  context: dict[str, Any] | None = None,
) -> Certificate:
  """Certifies from the rows that it takes, as `AnytimeSequence` has it.

  Args:
    losses: as for `next_block`. Those that it does not ask for may be there or
      not; they are not looked at.
    settings: as for `calibrate`.
    promises: see `next_block`.
    error_rate: see `calibrate`.
    p_value: see `next_block`.
    procedure: see `next_block`.
    number: how many rows there may have been, where the tables hold no more
      than those that were looked at; N if None.
    context: as for `calibrate`.

  Returns:
    The certificate. `num_examples` are the rows that were looked at; its
    context and its reason say how many there were.

  Raises:
    ValueError: as `next_block`, and if that needs more losses.
  """
  tables, promises = joint.tables_in_order(losses, promises)
  p_value = p_value or joint.default_of(promises)
  settings = inputs.check_settings(settings)
  found = run_tests(tables, promises, error_rate, p_value, procedure, number)
  if found.counts.size != len(settings):
    raise ValueError(
      f'losses have {found.counts.size} columns for {len(settings)} settings'
    )
  if found.needed is not None:
    column, start, stop = found.needed
    raise ValueError(
      f'the losses of column {column} are NaN from row {start} on, but '
      f'{procedure.name} needs them up to row {stop - 1}: next_block says '
      'which losses are to be computed next'
    )
  first = found.bounds[0]
  rows = {
    'there': len(tables[0]) if number is None else number,
    'looked_at': found.counts.tolist(),
  }
  tests = np.max([bound.p_values for bound in found.bounds], axis=0)
  certificate = Certificate(
    index=max(procedure(tests, error_rate), default=None),
    reason='',
    tolerance=first.tolerance,
    error_rate=float(error_rate),
    p_value=p_values.name_of(p_value),
    procedure=procedure.name,
    num_examples=int(found.counts.max()),
    settings=tuple(settings),
    risks=first.risks,
    p_values=tuple(tests.tolist()),
    loss_range=first.loss_range,
    context={**joint.about(first, context), ROWS: rows},
    promises=found.bounds if len(found.bounds) > 1 else (),
  )
  used = [table[: certificate.num_examples] for table in tables]
  return _explained(certificate, found, used, p_value, procedure)


def _explained(
  certificate: Certificate,
  found: RunningTests,
  tables: Sequence[np.ndarray],
  p_value: p_values.PValue,
  procedure: AnytimeSequence,
) -> Certificate:
  """Says why testing ended, and after how many rows."""
  rows = certificate.context[ROWS]
  # What would help is said by all that there were, looked at or not.
  whole = dataclasses.replace(certificate, num_examples=rows['there'])
  if certificate.promises:
    reason = joint.with_reason(whole, p_value, procedure, tables).reason
  else:
    reason = reasons.explain(whole, p_value, procedure, tables[0])
  looked_at = [count for count in rows['looked_at'] if count]
  least, most = min(looked_at), max(looked_at)
  each = f'{least}' if least == most else f'{least} to {most}'
  last = ''
  if found.verdict == anytime.GIVEN_UP and looked_at[-1] < rows['there']:
    last = f', the last of which was given up after {looked_at[-1]}'
  counted = (
    f'Anytime-valid: rows were looked at in blocks of {procedure.block} until '
    f'it was decided, {most} of {rows["there"]} in all and {each} for each of '
    f'the settings tested{last}.'
  )
  return dataclasses.replace(certificate, reason=f'{reason} {counted}')

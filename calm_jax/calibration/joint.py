"""Learn then Test with several losses: one certificate that bounds them all.

`calibrate_jointly` and `next_column_jointly` are to several losses what
`calibrate` and `next_column` are to one, which they are where there is one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.calibration import (
  bounds,
  inputs,
  multiple_testing,
  named_p_values,
  p_values,
  reasons,
)
from calm_jax.calibration.bounds import Bound, TestedBound
from calm_jax.calibration.certificate import Certificate
from calm_jax.calibration.procedure import (
  calibrate,
  check_tested,
  tests_of_columns,
)


def calibrate_jointly(
  losses: Sequence[np.ndarray],
  settings: Sequence[float | dict],
  promises: Sequence[Bound],
  *,
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  procedure: multiple_testing.Procedure | None = None,
  context: dict[str, Any] | None = None,
) -> Certificate:
  """Certifies the most aggressive setting that surely keeps every promise.

  For the certified setting P(E[loss_k] <= tolerance_k for all k) >=
  1 - error_rate, as for `calibrate`. The p-value of a setting is the largest of
  its losses' p-values: nothing is shared between the losses, and a certificate
  of several is never less careful than one of them alone.

  Args:
    losses: K tables [N, J] of the same N examples and J settings, one per
      promise. A column that the procedure does not ask for may be NaN in all.
    settings: as for `calibrate`.
    promises: K bounds, in any order; equal ones are one.
    error_rate: as for `calibrate`.
    p_value: as for `calibrate`, of every loss.
    procedure: as for `calibrate`.
    context: as for `calibrate`.

  Returns:
    The certificate; with one promise that of `calibrate`.

  Raises:
    ValueError: as `calibrate`; for no promises, one loss with two tolerances,
      or tables that are not of the same examples and settings.
  """
  losses, promises = tables_in_order(losses, promises)
  kept = {
    'error_rate': error_rate,
    'procedure': procedure or multiple_testing.fixed_sequence(),
    'p_value': p_value or default_of(promises),
  }
  if len(promises) == 1:
    return _calibrate_one(losses[0], settings, promises[0], context, kept)
  settings = inputs.check_settings(settings)
  inputs.check_error_rate(error_rate)
  tests = _tests(losses, promises, kept['p_value'])
  joint = tests.max(axis=0)
  if joint.size != len(settings):
    raise ValueError(
      f'losses have {joint.size} columns for {len(settings)} settings'
    )
  check_tested(losses[0], joint, kept['procedure'], error_rate)
  rejected = kept['procedure'](joint, error_rate)
  found = _tested(losses, promises, tests)
  certificate = Certificate(
    index=max(rejected, default=None),
    reason='',
    tolerance=found[0].tolerance,
    error_rate=float(error_rate),
    p_value=p_values.name_of(kept['p_value']),
    procedure=kept['procedure'].name,
    num_examples=len(losses[0]),
    settings=tuple(settings),
    risks=found[0].risks,
    p_values=tuple(joint.tolist()),
    loss_range=found[0].loss_range,
    context=about(promises[0], context),
    promises=found,
  )
  return with_reason(certificate, kept['p_value'], kept['procedure'], losses)


def next_column_jointly(
  losses: Sequence[np.ndarray],
  *,
  promises: Sequence[Bound],
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  procedure: multiple_testing.Procedure | None = None,
) -> int | None:
  """Returns the column whose losses are needed next, None if none is.

  Args:
    losses: K tables [N, J], NaN in the columns that are not computed yet, the
      same ones in all.
    promises: as for `calibrate_jointly`, and so are the others.
    error_rate: see `calibrate`.
    p_value: see `calibrate`.
    procedure: see `calibrate`.

  Raises:
    ValueError: as `calibrate_jointly`.
  """
  losses, promises = tables_in_order(losses, promises)
  procedure = procedure or multiple_testing.fixed_sequence()
  inputs.check_error_rate(error_rate)
  tests = _tests(losses, promises, p_value or default_of(promises))
  return procedure.next_test(tests.max(axis=0), error_rate)


def joint_p_values(
  losses: Sequence[np.ndarray],
  promises: Sequence[Bound],
  *,
  p_value: p_values.PValue | None = None,
) -> np.ndarray:
  """Returns the p-value of every setting [J]: the largest of its losses'.

  Args:
    losses: as for `next_column_jointly`, and so are the others.
    promises: see `next_column_jointly`.
    p_value: see `next_column_jointly`.

  Raises:
    ValueError: as `calibrate_jointly`.
  """
  losses, promises = tables_in_order(losses, promises)
  return _tests(losses, promises, p_value or default_of(promises)).max(axis=0)


def tables_in_order(
  losses: Sequence[np.ndarray], promises: Sequence[Bound]
) -> tuple[list[np.ndarray], list[Bound]]:
  """Returns tables and bounds in the order of certificates, each once."""
  tables = [np.asarray(table) for table in losses]
  if len(tables) != len(promises):
    raise ValueError(
      f'{len(tables)} tables of losses for {len(promises)} promises; give one '
      'for each'
    )
  places = bounds.in_order(promises)
  for table in tables:
    if table.shape != tables[0].shape:
      raise ValueError(
        f'tables of losses have shapes {tables[0].shape} and {table.shape}; '
        'they must be of the same examples and settings'
      )
  for table, bound in zip(tables, promises, strict=True):
    kept = next(p for p in places if promises[p] == bound)
    if not np.array_equal(tables[kept], table, equal_nan=True):
      raise ValueError(
        f'the {bound.name} is promised twice, with tables of losses that '
        'differ; give it once'
      )
  return [tables[place] for place in places], [promises[p] for p in places]


def default_of(promises: Sequence[Bound]) -> p_values.PValue:
  """Returns the p-value for losses of all these ranges."""
  lows, highs = zip(*(bound.loss_range for bound in promises), strict=True)
  return named_p_values.default((min(lows), max(highs)))


def _calibrate_one(losses, settings, bound, context, kept) -> Certificate:
  return calibrate(
    losses,
    settings,
    tolerance=bound.tolerance,
    loss_range=bound.loss_range,
    context=about(bound, context),
    **kept,
  )


def about(bound: Bound, context: dict[str, Any] | None) -> dict[str, Any]:
  """Returns the context with the name of a loss, unless it has one."""
  named = {'loss': bound.loss, 'metric': bound.metric}
  named = {name: value for name, value in named.items() if value}
  return {**named, **(context or {})}


def _tests(losses, promises, p_value) -> np.ndarray:
  """Returns p-values [K, J], NaN in columns that were not computed."""
  tests = []
  for table, bound in zip(losses, promises, strict=True):
    try:
      tests.append(
        tests_of_columns(table, bound.tolerance, p_value, bound.loss_range)
      )
    except ValueError as error:
      raise ValueError(f'{bound.name}: {error}') from None
  missing = np.isnan(tests)
  for column in np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0)):
    lacking = [
      bound.name
      for bound, row in zip(promises, missing, strict=True)
      if row[column]
    ]
    raise ValueError(
      f'column {column} lacks the {bounds.listed(lacking)}, but has '
      'others; one decode of a setting serves them all'
    )
  return np.stack(tests)


def _tested(losses, promises, tests) -> tuple[TestedBound, ...]:
  """Returns the bounds with what was found of each."""
  return tuple(
    TestedBound(
      loss=bound.loss,
      metric=bound.metric,
      tolerance=bound.tolerance,
      loss_range=bound.loss_range,
      risks=tuple(table.astype(np.float64).mean(axis=0).tolist()),
      p_values=tuple(row.tolist()),
    )
    for table, bound, row in zip(losses, promises, tests, strict=True)
  )


def with_reason(certificate, p_value, procedure, losses) -> Certificate:
  """Says why, by the promise that decided where testing ended."""
  place = _deciding(certificate, procedure)
  bound = certificate.promises[place]
  alone = dataclasses.replace(
    certificate,
    tolerance=bound.tolerance,
    risks=bound.risks,
    loss_range=bound.loss_range,
    promises=(),
  )
  reason = reasons.explain(alone, p_value, procedure, losses[place])
  decided = f'The {bound.name} decides.'
  return dataclasses.replace(certificate, reason=f'{decided} {reason}')


def _deciding(
  certificate: Certificate, procedure: multiple_testing.Procedure
) -> int:
  """Returns which promise has the largest p-value where testing ended.

  That is the setting after the certified one, if it was tested; where nothing
  was certified, the one nearest to it, of which reasons speak, too.
  """
  joint = np.array(certificate.p_values)
  tested = multiple_testing.needed_tests(
    procedure, joint, certificate.error_rate
  )
  column = min(np.flatnonzero(tested), key=lambda place: joint[place])
  if certificate.index is not None:
    after = certificate.index + 1
    ended = after == joint.size or np.isnan(joint[after])
    column = certificate.index if ended else after
  return int(
    np.argmax([bound.p_values[column] for bound in certificate.promises])
  )

"""Learn then Test: from a table of losses to a certified setting.

`calibrate` tests, for every setting, the hypothesis that its expected loss is
above the tolerance, and certifies the most aggressive setting whose hypothesis
was rejected. `next_column` runs the same tests on an unfinished table, so that
a caller decodes only the settings that can still matter. Angelopoulos et al.
(arXiv 2110.01052); CALM (arXiv 2207.07061), Section 4.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.calibration import (
  inputs,
  multiple_testing,
  named_p_values,
  p_values,
  reasons,
)
from calm_jax.calibration.certificate import Certificate


def calibrate(
  losses: np.ndarray,
  settings: Sequence[float | dict],
  *,
  tolerance: float = 0.1,
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  procedure: multiple_testing.Procedure | None = None,
  loss_range: tuple[float, float] = (0, 1),
  context: dict[str, Any] | None = None,
) -> Certificate:
  """Certifies the most aggressive setting whose risk is surely tolerable.

  For the certified setting P(E[loss] <= tolerance) >= 1 - error_rate over the
  draw of the N examples, provided they are exchangeable with the inputs served
  later and have chosen nothing else: not the settings, their order, the
  tolerance, the checkpoint or the p-value.

  Args:
    losses: [N, J], the loss of example n under setting j, within loss_range.
      Columns that the procedure does not ask for may be NaN.
    settings: [J], from conservative to aggressive: thresholds in [0, 1],
      strictly decreasing, or dicts (with a `threshold` or without).
    tolerance: the bound on E[loss], in the units of the losses, strictly inside
      loss_range.
    error_rate: the bound on the probability of certifying a setting whose
      expected loss is above the tolerance; in (0, 1).
    p_value: `f(losses [N] in [0, 1], *, tolerance) -> p`, super-uniform when
      E[loss] > tolerance. betting if None; hoeffding_bentkus is the paper's;
      exact_binomial where losses are 0 or 1; hoeffding, bentkus.
    procedure: a multiple testing procedure: fixed_sequence(...), Bonferroni()
      or Holm(); None is fixed_sequence().
    loss_range: the smallest and the largest value a loss can have. Losses and
      tolerance are mapped by it to [0, 1] alike.
    context: kept in the certificate: loss, metric, fingerprints, decoder
      settings, versions, seed.

  Returns:
    The certificate. If nothing could be certified it says why, and stands for
    the full model.

  Raises:
    ValueError: for losses that are NaN, outside loss_range or of the wrong
      shape, settings out of order, or numbers outside their range.
  """
  procedure = procedure or multiple_testing.fixed_sequence()
  p_value = p_value or named_p_values.default(loss_range)
  settings = inputs.check_settings(settings)
  inputs.check_error_rate(error_rate)
  losses = np.asarray(losses)
  if losses.ndim == 2 and losses.shape[1] != len(settings):
    raise ValueError(
      f'losses have {losses.shape[1]} columns for {len(settings)} settings'
    )
  tests = tests_of_columns(losses, tolerance, p_value, loss_range)
  check_tested(losses, tests, procedure, error_rate)
  rejected = procedure(tests, error_rate)
  certificate = Certificate(
    index=max(rejected, default=None),
    reason='',
    tolerance=float(tolerance),
    error_rate=float(error_rate),
    p_value=p_values.name_of(p_value),
    procedure=procedure.name,
    num_examples=len(losses),
    settings=tuple(settings),
    risks=tuple(losses.astype(np.float64).mean(axis=0).tolist()),
    p_values=tuple(tests.tolist()),
    loss_range=loss_range,
    context=context or {},
  )
  reason = reasons.explain(certificate, p_value, procedure, losses)
  return dataclasses.replace(certificate, reason=reason)


def next_column(
  losses: np.ndarray,
  *,
  tolerance: float = 0.1,
  error_rate: float = 0.05,
  p_value: p_values.PValue | None = None,
  procedure: multiple_testing.Procedure | None = None,
  loss_range: tuple[float, float] = (0, 1),
) -> int | None:
  """Returns the column whose losses are needed next, None if none is.

  Args:
    losses: [N, J], NaN in the columns that are not computed yet.
    tolerance: as for `calibrate`, and so are the others: the same arguments
      must be given to both.
    error_rate: see `calibrate`.
    p_value: see `calibrate`.
    procedure: see `calibrate`.
    loss_range: see `calibrate`.

  Raises:
    ValueError: as `calibrate`.
  """
  procedure = procedure or multiple_testing.fixed_sequence()
  p_value = p_value or named_p_values.default(loss_range)
  inputs.check_error_rate(error_rate)
  tests = tests_of_columns(np.asarray(losses), tolerance, p_value, loss_range)
  return procedure.next_test(tests, error_rate)


def tests_of_columns(
  losses: np.ndarray,
  tolerance: float,
  p_value: p_values.PValue,
  loss_range: tuple[float, float],
) -> np.ndarray:
  """Returns the p-value of every column [J], NaN for columns of NaN only.

  Args:
    losses: [N, J], in their units.
    tolerance: as for `calibrate`, and so are the others.
    p_value: see `calibrate`.
    loss_range: see `calibrate`.

  Raises:
    ValueError: for losses that are no numbers, outside their range or of the
      wrong shape.
  """
  inputs.check_range(loss_range, tolerance)
  losses = inputs.check_table(losses)
  untested = np.asarray(np.isnan(losses).all(axis=0))
  inputs.check_inside(losses, loss_range, where=~untested)
  mapped, mapped_tolerance = inputs.to_unit(losses, tolerance, loss_range)
  tests = np.full(losses.shape[1], math.nan)
  for column in np.flatnonzero(~untested):
    found = p_value(mapped[:, column], tolerance=mapped_tolerance)
    try:
      tests[column] = p_values.clamp_rounding(found, p_value)
    except ValueError as error:
      raise ValueError(f'column {column}: {error}') from None
  return tests


def check_tested(
  losses: np.ndarray,
  tests: np.ndarray,
  procedure: multiple_testing.Procedure,
  error_rate: float,
) -> None:
  """Checks that no column is missing that should not be.

  That is one that the procedure needs, or a hole: a column that it does not
  need and that is missing although a later one of that kind is there. Whoever
  fills such columns fills them in order, so something failed.

  Args:
    losses: [N, J].
    tests: their p-values [J], NaN where missing.
    procedure: see `calibrate`.
    error_rate: see `calibrate`.

  Raises:
    ValueError: naming the column and the rows.
  """
  needed = multiple_testing.needed_tests(procedure, tests, error_rate)
  untested = np.isnan(tests)
  for column in np.flatnonzero(needed & untested):
    raise ValueError(
      f'{_missing(losses, column)}, but {procedure.name} needs them: '
      'next_column says which column is to be computed next'
    )
  extra = np.flatnonzero(~needed & ~untested)
  for column in np.flatnonzero(untested):
    if extra.size and column < extra[-1]:
      raise ValueError(
        f'{_missing(losses, column)}, but those of column {extra[-1]} are not. '
        f'{procedure.name} needs neither; of the columns it does not need '
        'all after a missing one must be missing too'
      )


def _missing(losses, column) -> str:
  return (
    f'the losses of column {column} are NaN from row 0 to row {len(losses) - 1}'
  )

"""The steps of a tuning: candidates are screened, what is left is tested."""

import os
from collections.abc import Sequence

from calm_jax import calibration, records
from calm_jax.evaluation import tuning_clock, tuning_result, tuning_words
from calm_jax.evaluation.candidates import Candidate
from calm_jax.evaluation.tuning_columns import Column, loss_table, tables_of
from calm_jax.evaluation.tuning_request import TuningRequest


def screened(
  request: TuningRequest,
  run_context: records.RunContext,
  path: str | os.PathLike | None,
) -> records.Tuning:
  """Returns what screening leaves to test; its losses lie beside it then."""
  fingerprint = request.fingerprint(run_context.device)
  if path is not None and os.path.exists(path):
    found = records.read_record(path, records.Tuning)
    if found.fingerprint == fingerprint:
      request.say(
        f'{os.fspath(path)}: {len(found.candidates)} candidates were screened '
        'before; testing goes on with those, in their order (delete that file '
        'to screen anew)'
      )
      return found
  columns, left_out = _screen(request)
  measured = request.clock([column.candidate for column in columns])
  found = tuning_result.screened(
    columns,
    measured,
    request.statistics,
    request.compared,
    request.plan.least_gain,
  )
  sequence = tuning_clock.fitting(
    found.sequence,
    [column.seconds * request.tests_per_screening for column in columns],
    [one.screening_p_value for one in found.candidates],
    left=request.budget.left(),
    error_rate=request.plan.error_rate,
  )
  tuning = request.tuning(
    found, sequence, left_out, measured, fingerprint, run_context
  )
  request.say(tuning_words.of_screening(tuning))
  if path is not None:
    beside = os.path.join(os.path.dirname(path), records.SCREENING_TABLE)
    records.write_loss_table(
      beside, table(request, columns, tuning.screening_ids)
    )
    records.write_json(path, tuning)
  return tuning


def _screen(request: TuningRequest) -> tuple[list[Column], list[str]]:
  """Decodes candidates as long as there is time; returns who was left out."""
  columns, left_out = [], []
  for number, candidate in enumerate(request.candidates, 1):
    if candidate.lossless:
      columns.append(Column(candidate))
      continue
    if not request.budget.screens():
      left_out.append(candidate.label)
      continue
    columns.append(request.screening.column(candidate, request.losses))
    request.say(
      f'{candidate.label} ({number} of {len(request.candidates)}'
      f'{request.budget.describe()}): '
      f'{tuning_words.of_column(columns[-1], request.losses)}'
    )
  if left_out:
    request.say(f'no time to screen {len(left_out)}: {"; ".join(left_out)}')
  return columns, left_out


def test(
  request: TuningRequest, sequence: Sequence[Candidate], error_rate: float
) -> tuple[list[Column], list[float]]:
  """Tests candidates one after the other until one fails or time is over."""
  columns: list[Column] = []
  p_values: list[float] = []
  places = range(len(sequence))
  while (
    place := calibration.next_candidate(p_values, places, error_rate)
  ) is not None:
    if place and request.budget.left() <= 0:
      request.say(f'no time to test {len(sequence) - place} that were left')
      break
    column = request.test.column(sequence[place], request.losses)
    (p_value,) = calibration.joint_p_values(
      tables_of([column]),
      request.statistics['promises'],
      p_value=request.statistics['p_value'],
    )
    columns.append(column)
    p_values.append(float(p_value))
    passed = 'passed' if p_value <= error_rate else 'not passed, testing ends'
    request.say(
      f'test {place + 1} of {len(sequence)}, {sequence[place].label}: '
      f'{tuning_words.of_column(column, request.losses)}, p = {p_value:.3g}: '
      f'{passed}{request.budget.describe()}'
    )
  return columns, p_values


def table(
  request: TuningRequest, columns: Sequence[Column], example_ids: Sequence[str]
) -> records.LossTable:
  """Returns columns of some rows as a loss table."""
  about = {**request.about, **request.context}
  return loss_table(
    columns,
    request.losses,
    example_ids,
    {**about, 'examples': records.digest_of_rows(example_ids)},
  )

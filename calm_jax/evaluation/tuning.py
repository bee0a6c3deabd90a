"""The fastest setting of several policies that keeps what is promised.

Pareto testing (arXiv 2210.07913): one half of the rows screens candidates by
loss, the device's own clock by time; what no other beats is tested by the other
half, safest first, with all of the error rate, and the fastest of the certified
is chosen. What needs no test, lossless drafts and the full model, competes.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax import calibration, decoding, records
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import (
  tuning_certificate,
  tuning_clock,
  tuning_result,
  tuning_words,
)
from calm_jax.evaluation.calibrating import checked_before, stated
from calm_jax.evaluation.candidates import Candidate, Candidates
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.tuning_plan import TuningPlan
from calm_jax.evaluation.tuning_request import TuningRequest, as_request
from calm_jax.evaluation.tuning_result import Column
from calm_jax.evaluation.tuning_rows import Decoders

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TunedRun:
  """A tuning and what it certified.

  Attributes:
    tuning: what was tried and chosen.
    certificate: of the chosen candidate, or of the first that was tested if
      none was certified; None where nothing was tested, or needed to be.
    policy: what to decode with.
    screening: the losses of the candidates on the rows that screen; None where
      they had been screened before.
    tested: the losses of the tested ones on the rows that test.
  """

  tuning: records.Tuning
  certificate: Certificate | None
  policy: decoding.ComputePolicy
  screening: records.LossTable | None
  tested: records.LossTable


def run_tuning(
  decoders: Decoders,
  batches: Sequence[Batch],
  space: Sequence[Candidates],
  plan: TuningPlan,
  *,
  run_context: records.RunContext,
  bind: tuning_clock.Bind | None = None,
  context: Mapping[str, Any] | None = None,
  screened_path: str | os.PathLike | None = None,
  uses_in: str | os.PathLike | None = None,
  progress: Say | None = None,
) -> TunedRun:
  """Screens, tests and chooses.

  Args:
    decoders: gives what decodes with these weights; None for float.
    batches: of inputs that chose nothing: neither parameters nor settings.
    space: the policies with their settings.
    plan: what is promised, and what it may take.
    run_context: how this comes about, for the result.
    bind: gives the decoder that the clock measures, as it will serve; those of
      `decoders` if None.
    context: kept in the certificate and the tables.
    screened_path: a JSON file that keeps what was screened before anything is
      tested, so that a tuning that was interrupted tests the same candidates in
      the same order; None for nowhere.
    uses_in: as for `evaluation.calibrate`.
    progress: gets a line now and then.

  Raises:
    TypeError, ValueError: for a space, plan or rows that are none.
  """
  request = as_request(
    decoders,
    batches,
    space,
    plan,
    claims=checked_before(plan.claims, batches),
    context=dict(context or {}),
    bind=bind,
    say=progress if progress is not None else lambda line: None,
  )
  tuning, screening = _screened(request, run_context, screened_path)
  by_label = {one.label: one for one in request.candidates}
  sequence = [
    by_label[tuning.candidates[place].label] for place in tuning.sequence
  ]
  history = None
  if sequence:
    history = tuning_certificate.note_rows(
      tuning,
      request.statistics,
      request.losses,
      request.about,
      uses_in=uses_in,
      spent=plan.spent,
    )
    request.say(history.describe())
    tuning = dataclasses.replace(tuning, error_rate=history.level)
  columns, p_values = _test(request, sequence, tuning.error_rate)
  tuning = tuning_result.with_tests(tuning, columns, p_values)
  choice = None if tuning.choice is None else by_label[tuning.choice.label]
  certificate = tuning_certificate.certificate_of(
    tuning,
    columns,
    decoders(None if choice is None else choice.weights),
    request.statistics,
    request.losses,
    {
      **request.context,
      **({} if history is None else stated(history, uses_in)),
    },
  )
  return TunedRun(
    tuning=dataclasses.replace(tuning, sentence=tuning_words.sentence(tuning)),
    certificate=certificate,
    policy=decoding.ComputePolicy() if choice is None else choice.policy,
    screening=screening,
    tested=_table(request, columns, tuning.test_ids),
  )


def _screened(
  request: TuningRequest, run_context: records.RunContext, path
) -> tuple[records.Tuning, records.LossTable | None]:
  """Returns what screening leaves to test, and its losses if they are new."""
  fingerprint = request.fingerprint(run_context.device)
  if path is not None and os.path.exists(path):
    found = records.read_record(path, records.Tuning)
    if found.fingerprint == fingerprint:
      request.say(
        f'{os.fspath(path)}: {len(found.candidates)} candidates were screened '
        'before; testing goes on with those, in their order'
      )
      return found, None
  columns, left_out = _screen(request)
  measured = request.clock([column.candidate for column in columns])
  found = tuning_result.screened(
    columns, measured, request.statistics, request.compared
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
    records.write_json(path, tuning)
  return tuning, _table(request, columns, tuning.screening_ids)


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


def _test(
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
      tuning_result.tables_of([column]),
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


def _table(request: TuningRequest, columns, example_ids) -> records.LossTable:
  about = {**request.about, **request.context}
  return tuning_result.loss_table(
    columns,
    request.losses,
    example_ids,
    {**about, 'examples': records.digest_of_rows(example_ids)},
  )

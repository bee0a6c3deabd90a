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

from calm_jax import decoding, records
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import (
  tuning_certificate,
  tuning_clock,
  tuning_result,
  tuning_steps,
  tuning_words,
)
from calm_jax.evaluation.calibrating import checked_before, stated
from calm_jax.evaluation.candidates import Candidates
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.tuning_plan import TuningPlan
from calm_jax.evaluation.tuning_request import TuningRequest
from calm_jax.evaluation.tuning_rows import Decoder, Decoders
from calm_jax.evaluation.tuning_start import as_request

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TunedRun:
  """A tuning and what it certified.

  Attributes:
    tuning: what was tried and chosen.
    certificate: of the chosen candidate, or of the first that was tested if
      none was certified; None where nothing was tested, or needed to be.
    policy: what to decode with.
    tested: the losses of the tested ones on the rows that test.
  """

  tuning: records.Tuning
  certificate: Certificate | None
  policy: decoding.ComputePolicy
  tested: records.LossTable


def run_tuning(
  decoders: Decoder | Decoders,
  batches: Sequence[Batch],
  space: Sequence[Candidates],
  plan: TuningPlan,
  *,
  run_context: records.RunContext | None = None,
  bind: tuning_clock.Bind | None = None,
  context: Mapping[str, Any] | None = None,
  screened_path: str | os.PathLike | None = None,
  uses_in: str | os.PathLike | None = None,
  progress: Say | None = None,
) -> TunedRun:
  """Screens, tests and chooses.

  Args:
    decoders: what decodes, or classifies; where a policy of the space has
      weights of its own, a function that gives what decodes with them, None for
      float.
    batches: of inputs that chose nothing: neither parameters nor settings.
    space: the policies with their settings; of a `DatasetClassifier`, its
      `space`.
    plan: what is promised, and what it may take.
    run_context: how this comes about, for the result; made here if None.
    bind: gives the decoders that the clock measures, as they may serve, by the
      names of their depth loops; those of `decoders` if None.
    context: kept in the certificate and the tables.
    screened_path: a JSON file that keeps what was screened before anything is
      tested, so that a tuning that was interrupted tests the same candidates in
      the same order; beside it the losses, `records.SCREENING_TABLE`; None for
      nowhere.
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
  tuning = tuning_steps.screened(
    request, run_context or request.run_context(), screened_path
  )
  by_label = {one.label: one for one in request.candidates}
  sequence = [
    by_label[tuning.candidates[place].label] for place in tuning.sequence
  ]
  history = None
  if any(not one.lossless for one in tuning.candidates):
    # Even if nothing is tested: what screening says of its rows has been seen.
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
  columns, p_values = tuning_steps.test(request, sequence, tuning.error_rate)
  tuning = tuning_result.with_tests(tuning, columns, p_values)
  choice = None if tuning.choice is None else by_label[tuning.choice.label]
  certificate = tuning_certificate.certificate_of(
    tuning,
    columns,
    request.decoders,
    request.statistics,
    request.losses,
    {
      **request.context,
      **({} if history is None else _stated(request, history, uses_in)),
    },
  )
  return TunedRun(
    tuning=dataclasses.replace(tuning, sentence=tuning_words.sentence(tuning)),
    certificate=certificate,
    policy=decoding.ComputePolicy() if choice is None else choice.policy,
    tested=tuning_steps.table(request, columns, tuning.test_ids),
  )


def _stated(
  request: TuningRequest,
  history: records.RowHistory,
  uses_in: str | os.PathLike | None,
) -> dict[str, Any]:
  """Returns what a certificate states of the rows that test."""
  return {
    'seen': records.to_jsonable(request.test.seen()),
    **stated(history, uses_in),
  }

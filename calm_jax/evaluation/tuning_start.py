"""How a tuning begins: what was asked for is checked, and rows are split."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax import decoding, interfaces
from calm_jax.evaluation import tuning_clock, tuning_words
from calm_jax.evaluation.calibration_plan import CalibrationPlan
from calm_jax.evaluation.candidates import as_space, check_labels, in_turns
from calm_jax.evaluation.dataset_classifier import DatasetClassifier
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.distinct_inputs import say_distinct
from calm_jax.evaluation.tuning_plan import TuningPlan
from calm_jax.evaluation.tuning_request import TuningRequest
from calm_jax.evaluation.tuning_rows import (
  Decoder,
  Decoders,
  HalfOfRows,
  as_decoders,
  split_batches,
)

Say = Callable[[str], None]


def as_request(
  decoders: Decoder | Decoders,
  batches: Sequence[Batch],
  space: Sequence[Any],
  plan: TuningPlan,
  *,
  claims: CalibrationPlan,
  context: Mapping[str, Any],
  bind: tuning_clock.Bind | None,
  say: Say,
) -> TuningRequest:
  """Checks what was asked for, and decodes the full model on rows that screen.

  Raises:
    TypeError, ValueError: for a space, plan or rows that are none.
  """
  budget = tuning_clock.Budget(plan.minutes)
  decoders = as_decoders(decoders)
  if plan.depth_loops is not None and isinstance(
    decoders(None), DatasetClassifier
  ):
    raise ValueError(
      f'depth_loops is {plan.depth_loops!r}, and classes come of encoder '
      'layers alone: leave it out'
    )
  if bind is None and plan.depth_loops is not None:
    own = decoders(None).bound.depth_loop
    for name, loop in plan.loops(own).items():
      if loop.traced_layers != own.traced_layers:
        raise ValueError(
          f'depth loop {name!r} wants parameters laid out otherwise than for '
          f'{decoding.name_of_depth_loop(own)!r}, which the decoder is bound '
          'to: give bind, which binds to each'
        )
  candidates = tuple(in_turns(as_space(space), decoders(None).max_length))
  check_labels(candidates)
  tuning_words.check_compared(candidates, plan.compared)
  inputs = say_distinct(batches, say)
  halves = split_batches(
    inputs.batches,
    inputs.example_ids,
    seed=plan.seed,
    share=plan.screening_share,
  )
  screening, test = (HalfOfRows(decoders, half, candidates) for half in halves)
  # Rows that are too few for it are so before anything is decoded.
  clocked = tuning_clock.clocked_batches(halves[0], plan)
  say(f'{tuning_words.of_candidates(candidates)}{budget.describe()}')
  claims = claims.for_texts(
    screening.full.texts, what="the full model's outputs"
  )
  say(
    tuning_words.of_rows(
      screening.number, test.number, claims.statistics(), plan.error_rate
    )
  )
  return TuningRequest(
    decoders=decoders,
    candidates=candidates,
    plan=plan,
    claims=claims,
    screening=screening,
    test=test,
    clocked=clocked,
    budget=budget,
    bind=bind or (lambda weights: _in_loops(decoders(weights), plan)),
    context=dict(context),
    say=say,
  )


def _in_loops(
  decoder: Decoder, plan: TuningPlan
) -> dict[str, interfaces.BoundDecoder]:
  """Returns a decoder as it is bound, in the depth loops that a plan names."""
  bound = decoder.bound
  return {
    name: dataclasses.replace(bound, depth_loop=loop)
    for name, loop in plan.loops(bound.depth_loop).items()
  }

"""What a tuning was asked for, checked, and what it works with."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from calm_jax import decoding, quantisation, records
from calm_jax.calibration import p_values
from calm_jax.evaluation import classifier_clock, tuning_clock
from calm_jax.evaluation.calibration_plan import CalibrationPlan
from calm_jax.evaluation.candidates import Candidate
from calm_jax.evaluation.dataset_classifier import DatasetClassifier
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.tuning_columns import digest
from calm_jax.evaluation.tuning_plan import TuningPlan
from calm_jax.evaluation.tuning_result import Screened
from calm_jax.evaluation.tuning_rows import (
  Decoders,
  HalfOfRows,
)
from calm_jax.records import decoding_contexts, provenance

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TuningRequest:
  """All that the steps of a tuning share.

  Attributes:
    decoders: gives what decodes with these weights; None for float.
    candidates: in the order in which they are screened.
    plan: what was asked for.
    claims: the same as a calibration has it, with metrics that see the texts.
    screening: the rows that screen.
    test: the rows that test.
    clocked: the batches that the clock measures.
    budget: the time that is left.
    bind: gives the decoders that the clock measures.
    context: kept in certificate and tables.
    say: gets a line now and then.
  """

  decoders: Decoders
  candidates: tuple[Candidate, ...]
  plan: TuningPlan
  claims: CalibrationPlan
  screening: HalfOfRows
  test: HalfOfRows
  clocked: Sequence[dict[str, Any]]
  budget: tuning_clock.Budget
  bind: tuning_clock.Bind
  context: dict[str, Any]
  say: Say

  @functools.cached_property
  def losses(self) -> tuple[ConsistencyLoss, ...]:
    """The loss of each promise, in the order of certificates."""
    return self.claims.losses()

  @functools.cached_property
  def statistics(self) -> dict[str, Any]:
    """Promises, p-value, procedure and error rate."""
    return self.claims.statistics()

  @functools.cached_property
  def about(self) -> dict[str, Any]:
    """What is decoded, whatever the policy."""
    found = self.decoders(None).context(decoding.ComputePolicy(), {}).write()
    return {
      name: value
      for name, value in found.items()
      if name not in ('policy', 'weights', 'versions')
    }

  @property
  def compared(self) -> str:
    """The policy that the paper's CALM is shown for, '' for none."""
    lossy = [one.name for one in self.candidates if not one.lossless]
    return self.plan.compared or next(iter(lossy), '')

  @property
  def tests_per_screening(self) -> float:
    """How many rows test for each that screens."""
    return self.test.number / self.screening.number

  def clock(self, candidates: Sequence[Candidate]) -> tuning_clock.Clocked:
    """Measures candidates."""
    decoder = self.decoders(None)
    if isinstance(decoder, DatasetClassifier):
      return classifier_clock.clock(
        decoder, self.clocked, candidates, self.plan, progress=self.say
      )
    return tuning_clock.clock(
      self.bind,
      self.clocked,
      candidates,
      self.plan,
      max_length=decoder.max_length,
      eos_id=decoder.eos_id,
      suppressed_tokens=decoder.suppressed_tokens,
      progress=self.say,
    )

  def run_context(self) -> records.RunContext:
    """Returns how a result of this process comes about."""
    return provenance.run_context(
      device=jax.devices()[0].device_kind,
      # A classifier's is its model's, which the caller knows.
      dtype=self.about.get('dtype') or '',
      libraries=provenance.LIBRARIES,
    )

  def fingerprint(self, device: str) -> str:
    """Returns a hash of all that was asked for but the time it may take."""
    about = {
      name: value
      for name, value in self.about.items()
      if name == 'backend' or name not in decoding_contexts.TOLD
    }
    plan = self.plan
    return digest(
      {
        'about': {**about, **self.context, 'device': device},
        'rows': [self.screening.example_ids, self.test.example_ids],
        'candidates': [
          [
            one.label,
            decoding.describe(one.policy, {}),
            quantisation.describe_weights(one.weights),
          ]
          for one in self.candidates
        ],
        'promises': self.promises,
        'p_value': p_values.name_of(self.statistics['p_value']),
        'numbers': [
          plan.error_rate,
          plan.batch_size,
          plan.seed,
          plan.least_gain,
          plan.repeats,
          plan.num_timed,
        ],
        'compared': self.compared,
        # Left out where it is not asked for: older files go on.
        **(
          {}
          if plan.depth_loops is None
          else {'depth_loops': [*plan.depth_loops]}
        ),
      }
    )

  @property
  def promises(self) -> tuple[records.PromisedLoss, ...]:
    """What is promised, for the result."""
    return tuple(
      records.PromisedLoss(
        loss=bound.loss, metric=bound.metric, tolerance=bound.tolerance
      )
      for bound in self.statistics['promises']
    )

  def tuning(
    self,
    found: Screened,
    sequence: Sequence[int],
    left_out: Sequence[str],
    measured: tuning_clock.Clocked,
    fingerprint: str,
    run_context: records.RunContext,
  ) -> records.Tuning:
    """Returns the result as far as screening knows it."""
    return records.Tuning(
      fingerprint=fingerprint,
      promises=self.promises,
      p_value=p_values.name_of(self.statistics['p_value']),
      error_rate=float(self.plan.error_rate),
      seed=self.plan.seed,
      least_gain=self.plan.least_gain,
      screening_ids=self.screening.example_ids,
      test_ids=self.test.example_ids,
      batch_size=self.plan.batch_size,
      full_milliseconds=measured.full.milliseconds_per_step,
      full_depth_loop=measured.full.depth_loop,
      depth_loops=self.plan.depth_loops and tuple(self.plan.depth_loops),
      candidates=found.candidates,
      front=found.front,
      sequence=tuple(sequence),
      paper=found.paper,
      compared=self.compared,
      left_out=tuple(left_out),
      num_encoder_layers=self.screening.full.num_encoder_layers,
      context=run_context,
    )

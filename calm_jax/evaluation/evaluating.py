"""Evaluation in one call: decodes compared, scored, timed, and shown."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax import decoding, exits, interfaces, records
from calm_jax.calibration.certificate import Certificate
from calm_jax.costs import BytesOf
from calm_jax.evaluation import (
  comparison,
  corpus_metrics,
  losses,
  seen_text,
)
from calm_jax.evaluation.budget_use import budget_use
from calm_jax.evaluation.comparison_plan import ComparisonPlan
from calm_jax.evaluation.dataset_decoder import DatasetDecoder
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.promise_outcomes import (
  metric_named,
  promise_outcomes,
)
from calm_jax.evaluation.samples import sample_outputs
from calm_jax.evaluation.timing import OfModel, take_batches, time_decode

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """A result, and the two decodes that it is about.

  Attributes:
    result: tables, timings and samples.
    full: the full model's decode.
    early: that of the certified early exit.
  """

  result: records.EvaluationResult
  full: DecodedDataset
  early: DecodedDataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
  """What timings run on.

  Attributes:
    bind: returns `bound` of `time_decode`, once everything else is decoded; on
      one device, as batches of this size are what a request is.
    bind_float: the same of the float model, where `bind` has it in 8 bits: it
      is what speed-ups are held against.
    bytes_of: as for `time_decode`.
  """

  bind: Callable[[], Mapping[str, interfaces.BoundDecoder]]
  bytes_of: BytesOf | None = None
  bind_float: Callable[[], Mapping[str, interfaces.BoundDecoder]] | None = None


def run_evaluation(
  decode: DatasetDecoder,
  batches: Sequence[Batch],
  policy: decoding.ComputePolicy,
  certificate: Certificate,
  *,
  certified_policy: decoding.ComputePolicy,
  plan: ComparisonPlan,
  pieces: Callable[[Sequence[int]], Sequence[str]],
  prefix: str = '',
  timed: Timed | None = None,
  progress: Say | None = None,
  **about: Any,
) -> Evaluation:
  """Compares full depth, certified early exit, static exits and the oracle.

  Args:
    decode: decodes the batches under any policy.
    batches: of inputs that nothing was trained, selected or calibrated on.
    policy: the policy that the certificate was made for.
    certificate: the certificate.
    certified_policy: the policy with the certificate applied.
    plan: metrics, figure and timings.
    pieces: ids -> their pieces, for the samples.
    prefix: what stands in front of every input, which copies of it leave out.
    timed: what timings run on; none are made if None.
    progress: gets a line to print now and then.
    **about: `task`, `split` and `context` of the result.

  Raises:
    ValueError: for too few inputs for a batch that is to be timed.
  """
  # Before anything is decoded: too few inputs for a batch show at once.
  timed_batches = [
    take_batches(batches, batch_size=size, num_batches=plan.timing_batches)
    for size in plan.timing_batch_sizes
  ]
  decode_batches = functools.partial(decode, batches)
  scoring = _scoring(plan, certificate)
  if progress is not None:
    progress('decoding with the full model')
  full = decode.full(batches, certified_policy)
  compared = comparison.decode_for_comparison(
    decode_batches,
    certified_policy,
    setting=_setting(certificate),
    certified=certificate.certified,
    full=full,
    progress=progress,
  )
  early = compared[1].decoded
  if decode.reference is not None:
    compared += (_whole(decode_batches, certified_policy),)
  samples, selection = sample_outputs(
    early, full, losses=scoring.textual(early, full), pieces=pieces
  )
  _say_blind(plan, certificate, full, progress)
  copies = [text.removeprefix(prefix) for text in full.inputs_text]
  result = records.EvaluationResult(
    num_examples=full.num_examples,
    num_layers=full.num_layers,
    num_encoder_layers=full.num_encoder_layers,
    primary_metric=plan.metrics[0],
    rows=(
      *comparison.compare(compared, scoring=scoring),
      comparison.baseline_row(
        'copy of the input', copies, full=full, scoring=scoring
      ),
    ),
    sweep=comparison.sweep(
      functools.partial(
        decode_batches, traces=decode.trace(batches, full, policy)
      ),
      policy,
      plan.sweep_thresholds,
      compared,
      scoring=scoring,
      progress=progress,
    ),
    certificate=records.CertificateSummary.of(
      certificate,
      loss=certificate.context['loss'],
      metric=certificate.context['metric'],
      measure=_measure(policy),
    ),
    timings=_timings(
      decode,
      timed_batches if timed is not None else (),
      {
        compared[0].name: decoding.full_model(policy),
        compared[1].name: certified_policy,
      },
      timed=timed,
      num_repeats=plan.timing_repeats,
      progress=progress,
    ),
    samples=samples,
    sample_selection=selection,
    consistency_metric=certificate.context['metric'],
    budget=_budget_use(certified_policy, early),
    promises=promise_outcomes(
      certificate,
      early,
      full,
      metric_of=functools.partial(metric_named, plan),
    ),
    **about,
  )
  return Evaluation(result, full, early)


def _setting(certificate: Certificate) -> Any:
  """Returns what tables call the setting: its threshold, or all of several."""
  setting = certificate.setting
  several = isinstance(setting, dict) and len(setting) > 1
  return setting if several else certificate.threshold


def _measure(policy: decoding.ComputePolicy) -> str:
  """Returns what is compared with the threshold that was certified.

  A rule without a measure, such as PatienceExit, is one itself. Where sources
  leave the encoder as well as tokens, that is said.
  """

  def of(rule: Any) -> str:
    return type(getattr(rule, 'measure', rule)).__name__

  stops = policy.encoder_exit
  if stops.whole:
    return of(policy.exit_rule)
  encoder = f'{of(getattr(stops, "rule", stops))} in the encoder'
  if comparison.exits_encoder_alone(policy):
    return encoder
  return f'{of(policy.exit_rule)}, {encoder}'


def _whole(
  decode: Callable[..., DecodedDataset], policy: decoding.ComputePolicy
) -> comparison.ComparedDecode:
  """Returns the decode of all layers in 8 bits: what weights alone change."""
  decoded = decode(policy=decoding.full_model(policy))
  return comparison.ComparedDecode(
    'all layers, weights in 8 bits', 'static', decoded.num_layers, decoded
  )


def _say_blind(
  plan: ComparisonPlan,
  certificate: Certificate,
  full: DecodedDataset,
  say: Say | None,
) -> None:
  """Says which of the metrics cannot see the texts."""
  texts = [text for row in full.references for text in row]
  certified = [bound.metric for bound in certificate.bounds]
  names = [*dict.fromkeys(certified), *plan.metrics]
  blind = seen_text.blind_metrics(names, [*texts, *full.texts])
  if blind and say is not None:
    say(
      f'{", ".join(blind)}: most of these texts is nothing to it, and its '
      "numbers say little; 'chrf' looks at all of them"
    )


def _scoring(
  plan: ComparisonPlan, certificate: Certificate
) -> comparison.Scoring:
  """Returns the metrics that are asked for and the losses of a certificate."""
  metric = metric_named(plan, certificate.context['metric'])
  for bound in certificate.promises:
    metric_named(plan, bound.metric)  # before anything is decoded
  # Unclipped where that is what was certified.
  signed = any(bound.loss == 'signed' for bound in certificate.bounds)
  return comparison.Scoring(
    quality={
      name: corpus_metrics.CORPUS_METRICS[name] for name in plan.metrics
    },
    textual=losses.textual_loss(metric),
    risk=losses.get_loss('signed' if signed else 'risk', metric),
  )


def _timings(
  decode, timed_batches, policies, *, timed, num_repeats, progress
) -> tuple[records.TimingRow, ...]:
  """Times policies under every depth loop, the first one as the baseline."""
  rows: tuple[records.TimingRow, ...] = ()
  if not timed_batches:
    return rows
  bound = timed.bind()
  if timed.bind_float is not None:
    full, *_ = policies
    in_float = OfModel(policies[full], timed.bind_float())
    policies = {**policies, full: in_float}
  for batches in timed_batches:
    rows += time_decode(
      bound,
      batches,
      policies,
      max_length=decode.max_length,
      baseline=next(iter(policies)),
      eos_id=decode.eos_id,
      suppressed_tokens=decode.suppressed_tokens,
      bytes_of=timed.bytes_of,
      num_repeats=num_repeats,
      progress=progress,
    )
  return rows


def _budget_use(policy, early: DecodedDataset) -> records.BudgetUse | None:
  """Returns how far a decode used its layer budget, None without one."""
  if not isinstance(policy.exit_rule, exits.LayerBudget):
    return None
  return budget_use(
    policy.exit_rule,
    early.exit_layers,
    early.confidences,
    num_layers=early.num_layers,
  )

"""An evaluation: the table, the timings and outputs to look at."""

import dataclasses
import math
from typing import Any

from calm_jax.records.budgets import BudgetUse
from calm_jax.records.json_files import FORMAT_VERSION
from calm_jax.records.promises import PromisedLoss, PromiseOutcome


@dataclasses.dataclass(frozen=True)
class RunContext:
  """How a result was obtained.

  Attributes:
    device: what computed, for example 'cpu' or 'NVIDIA H100'.
    machine: the host in words, for example '2 cores, x86_64'.
    dtype: the dtype of activations.
    versions: library -> version.
    seeds: what was seeded -> seed.
    command: the command line, or ''.
    created: ISO 8601 time, UTC, or ''.
    details: anything else worth keeping: fingerprints, paths, settings.
  """

  device: str
  dtype: str
  machine: str = ''
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  seeds: dict[str, int] = dataclasses.field(default_factory=dict)
  command: str = ''
  created: str = ''
  details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CertificateSummary:
  """The part of a certificate that a report tells its reader.

  Attributes:
    certified: whether any setting was certified; if not, decoding is the full
      model's.
    threshold: the certified threshold in [0, 1], 1.0 (the full model) if
      nothing was certified, None for a setting without a threshold.
    setting: the certified setting (a number or a dict), or None.
    tolerance: what the expected loss must not exceed (CALM's delta).
    error_rate: the probability with which the guarantee may fail (epsilon).
    loss: what was bounded: 'textual' (distance to the full model's output),
      'risk' (quality lost against the references, clipped at 0 per input) or
      'signed' (the same unclipped).
    metric: the text metric m of the loss, for example 'rouge_l'.
    measure: the confidence measure, for example 'SoftmaxMargin'.
    num_examples: N, the calibration inputs.
    calibration_loss: mean loss of the setting on them, NaN if none.
    description: the guarantee in words.
    promises: of several losses that are bounded together; loss, metric,
      tolerance and calibration_loss are then those of the first. () for one.
  """

  certified: bool
  threshold: float | None
  setting: Any
  tolerance: float
  error_rate: float
  loss: str
  metric: str
  measure: str
  num_examples: int
  calibration_loss: float
  description: str
  promises: tuple[PromisedLoss, ...] = ()

  @property
  def losses(self) -> tuple[PromisedLoss, ...]:
    """What is promised of one loss or of several, in one form."""
    return self.promises or (
      PromisedLoss(
        loss=self.loss, metric=self.metric, tolerance=self.tolerance
      ),
    )

  @classmethod
  def of(
    cls, certificate: Any, *, loss: str, metric: str, measure: str
  ) -> 'CertificateSummary':
    """Summarises a `calm_jax.calibration.Certificate`."""
    index = certificate.index
    return cls(
      certified=certificate.certified,
      threshold=certificate.threshold,
      setting=certificate.setting,
      tolerance=certificate.tolerance,
      error_rate=certificate.error_rate,
      loss=loss,
      metric=metric,
      measure=measure,
      num_examples=certificate.num_examples,
      calibration_loss=math.nan if index is None else certificate.risks[index],
      description=certificate.describe(),
      promises=tuple(
        PromisedLoss(
          loss=bound.loss, metric=bound.metric, tolerance=bound.tolerance
        )
        for bound in certificate.promises
      ),
    )


@dataclasses.dataclass(frozen=True)
class PolicyRow:
  """One way of decoding, measured on one split.

  Attributes:
    name: how the table calls it.
    kind: 'full', 'certified' (early exit at the certified threshold),
      'early_exit' (at any other), 'static' (every token at one layer), 'oracle'
      or 'baseline' (no decoding at all, such as copying the source).
    setting: the threshold, the layer ('encoder layer 3' of the encoder), or
      None.
    quality: metric name -> value in percent (0..100), against references.
    textual_consistency: mean of 1 - m(output, the full model's output), in
      [0, 1]: 0 is the same text everywhere.
    textual_standard_error: standard error of that mean over the inputs.
    risk_consistency: mean quality lost against the full model, in [0, 1] where
      clipped per input, NaN without references.
    risk_standard_error: standard error of that mean.
    mean_exit_layer: layers used per decoded token, in 1..L; NaN for a baseline.
    exit_layer_histogram: decoded tokens that left after layer 1..L.
    num_tokens: decoded tokens, EOS included.
    work: column of `interfaces.Work` -> its sum over all inputs; {} in results
      of versions that counted nothing.
    mean_encoder_layer: encoder layers per source, in 1..L_enc; NaN where all
      run for all.
  """

  name: str
  kind: str
  setting: Any
  quality: dict[str, float]
  textual_consistency: float
  textual_standard_error: float
  risk_consistency: float
  risk_standard_error: float
  mean_exit_layer: float
  exit_layer_histogram: tuple[int, ...]
  num_tokens: int
  work: dict[str, int] = dataclasses.field(default_factory=dict)
  mean_encoder_layer: float = math.nan

  @property
  def layers_run(self) -> float:
    """Layers run per token, those caught up later, or dropped, included."""
    return self._per_token('attention', 'caught_up')

  @property
  def layers_projected(self) -> float:
    """Layers of which keys and values were made, per token."""
    return self._per_token('projections')

  @property
  def accepted_per_check(self) -> float:
    """Drafts that stayed, per check of drafts; NaN where none were checked."""
    cycles = self.work.get('cycles')
    return self.work['accepted'] / cycles if cycles else math.nan

  def _per_token(self, *columns: str) -> float:
    if not self.work or not self.num_tokens:
      return math.nan
    return sum(self.work[name] for name in columns) / self.num_tokens


@dataclasses.dataclass(frozen=True)
class TimingRow:
  """Wall clock of one policy at one batch size.

  Attributes:
    name: the policy, as in `PolicyRow.name`.
    batch_size: rows decoded together.
    depth_loop: the depth loop that was fastest for this policy.
    milliseconds_per_step: median wall clock per step of the token loop (one
      token for each row of the batch), with the encoder's share in as many
      steps as the baseline takes.
    milliseconds_per_batch: median wall clock per batch.
    speed_up: the baseline's milliseconds per step over this one's.
    ceiling: the speed-up that memory traffic allows for what was computed, NaN
      where it was not worked out.
    num_batches: different batches timed.
    num_repeats: times each was timed, interleaved with the other policies.
    mean_exit_layer: layers per decoded token in the timed batches.
    mean_encoder_layer: encoder layers per source in them; NaN where all run for
      all.
  """

  name: str
  batch_size: int
  depth_loop: str
  milliseconds_per_step: float
  milliseconds_per_batch: float
  speed_up: float
  ceiling: float
  num_batches: int
  num_repeats: int
  mean_exit_layer: float
  mean_encoder_layer: float = math.nan


@dataclasses.dataclass(frozen=True)
class DecodedText:
  """One decoded sequence, token by token, up to and including EOS.

  Attributes:
    text: the detokenised output.
    tokens: vocabulary ids.
    pieces: the ids as the tokenizer writes them ('\u2581' opens a word).
    exit_layers: layers used by each token, 1..L.
    confidences: confidence at the exit, NaN where the rule did not look.
    prefix_length: how many tokens were forced, the first ones; means over
      layers leave them out.
    encoder_exit_layer: encoder layers that its source ran; None for all.
  """

  text: str
  tokens: tuple[int, ...]
  pieces: tuple[str, ...]
  exit_layers: tuple[int, ...]
  confidences: tuple[float, ...]
  prefix_length: int = 0
  encoder_exit_layer: int | None = None


@dataclasses.dataclass(frozen=True)
class SampleOutput:
  """One input with what early exit and the full model make of it.

  Attributes:
    example_id: the hash of the input, as in the loss table.
    source: the input text.
    references: the reference texts, possibly none.
    early: the early-exit output.
    full: the full model's output.
    loss: the textual loss of `early` against `full`, in [0, 1].
  """

  example_id: str
  source: str
  references: tuple[str, ...]
  early: DecodedText
  full: DecodedText
  loss: float


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
  """One evaluation: the table, the timings and sample outputs of one split.

  Attributes:
    task: the task's name.
    split: the split, which nothing was trained, selected or calibrated on.
    num_examples: inputs evaluated.
    num_layers: L, the decoder layers.
    primary_metric: the key of `PolicyRow.quality` that figures show.
    rows: the table.
    sweep: further points of the figure (other thresholds, other layers).
    certificate: the certificate that was applied, or None.
    timings: wall clock, or empty.
    samples: outputs to look at.
    sample_selection: how they were chosen, in words.
    consistency_metric: the text metric behind the consistency columns.
    budget: how far the certified early exit used its layer budget; None if its
      policy has none.
    context: how all this was obtained.
    format_version: of this schema.
    promises: where several losses were certified together, what each came out
      as at the certified setting.
    num_encoder_layers: L_enc; None where the decoder does not say.
  """

  task: str
  split: str
  num_examples: int
  num_layers: int
  primary_metric: str
  rows: tuple[PolicyRow, ...]
  context: RunContext
  sweep: tuple[PolicyRow, ...] = ()
  certificate: CertificateSummary | None = None
  timings: tuple[TimingRow, ...] = ()
  samples: tuple[SampleOutput, ...] = ()
  sample_selection: str = ''
  consistency_metric: str = 'rouge_l'
  budget: BudgetUse | None = None
  format_version: int = FORMAT_VERSION
  promises: tuple[PromiseOutcome, ...] = ()
  num_encoder_layers: int | None = None

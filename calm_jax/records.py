"""The schema of every file that one job writes and another reads.

First the reading and writing, then the records. Files are strict JSON: NaN and
infinity are stored as null. They are written to a temporary name and renamed,
so that a reader never meets half a file. A loss table is one .npz that carries
its JSON header inside. This module knows NumPy and nothing of JAX.
"""

import dataclasses
import json
import math
import os
import types
import typing
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

FORMAT_VERSION = 1


def to_jsonable(value: Any) -> Any:
  """Converts dataclasses, NumPy values and NaN to what strict JSON can hold."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {
      field.name: to_jsonable(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, dict):
    return {str(key): to_jsonable(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return to_jsonable(value.tolist())
  if isinstance(value, (list, tuple)):
    return [to_jsonable(item) for item in value]
  if isinstance(value, np.generic):
    return to_jsonable(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file by renaming a finished temporary one into place."""
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(temporary, path)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes one value as an indented strict-JSON file."""
  text = json.dumps(
    to_jsonable(value), indent=1, ensure_ascii=False, allow_nan=False
  )
  write_text(path, text + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is not JSON, naming the file (truncated, edited, ...).
  """
  with open(path, encoding='utf-8') as file:
    try:
      return json.load(file)
    except json.JSONDecodeError as error:
      raise ValueError(
        f'{os.fspath(path)} is not valid JSON: {error}'
      ) from None


def append_jsonl(path: str | os.PathLike, row: Any) -> None:
  """Appends one row to a JSONL file."""
  line = json.dumps(to_jsonable(row), ensure_ascii=False, allow_nan=False)
  with open(path, 'a', encoding='utf-8') as file:
    file.write(line + '\n')


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
  """Writes rows as a JSONL file, whole or not at all."""
  lines = (
    json.dumps(to_jsonable(row), ensure_ascii=False, allow_nan=False)
    for row in rows
  )
  write_text(path, ''.join(line + '\n' for line in lines))


def read_jsonl(path: str | os.PathLike) -> Iterator[Any]:
  """Yields the rows of a JSONL file; a bad line is named by its number."""
  with open(path, encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      try:
        yield json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(
          f'{os.fspath(path)} line {number} is not valid JSON: {error}'
        ) from None


def from_jsonable(kind: Any, value: Any, *, where: str = 'record') -> Any:
  """Rebuilds a record from what `to_jsonable` made of it.

  Dataclasses, tuples of them, mappings and optional values are followed by
  their annotations; null where a float is expected becomes NaN. Keys that the
  record does not know are ignored, so that an older reader can read a newer
  file.

  Args:
    kind: the annotation to build, such as a dataclass.
    value: plain JSON values.
    where: how errors name the place.

  Returns:
    An instance of `kind`.

  Raises:
    ValueError: if a value is missing or is of another shape, naming its place.
  """
  origin = typing.get_origin(kind)
  arguments = typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    inner = next(item for item in arguments if item is not type(None))
    return from_jsonable(inner, value, where=where)
  if dataclasses.is_dataclass(kind):
    return _record_from_jsonable(kind, value, where)
  if origin is tuple:
    _expect(value, list, where)
    return tuple(
      from_jsonable(arguments[0], item, where=f'{where}[{index}]')
      for index, item in enumerate(value)
    )
  if origin in (dict, Mapping):
    _expect(value, dict, where)
    return {
      key: from_jsonable(arguments[1], item, where=f'{where}[{key!r}]')
      for key, item in value.items()
    }
  if kind is float:
    if value is None:
      return math.nan
    _expect(value, (int, float), where)
    return float(value)
  if kind in (int, str, bool):
    _expect(value, kind, where)
  return value


def _record_from_jsonable(kind: type, value: Any, where: str) -> Any:
  """Builds one dataclass; fields with a default may be absent."""
  _expect(value, dict, where)
  hints = typing.get_type_hints(kind)
  arguments = {}
  for field in dataclasses.fields(kind):
    if field.name in value:
      arguments[field.name] = from_jsonable(
        hints[field.name], value[field.name], where=f'{where}.{field.name}'
      )
    elif (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise ValueError(
        f'{where} has no {field.name!r}: it was not written by this version of '
        f'calm_jax as a {kind.__name__}; write it again.'
      )
  return kind(**arguments)


def _expect(value: Any, kind: type | tuple[type, ...], where: str) -> None:
  """Raises a ValueError that names the place of a value of another type."""
  if not isinstance(value, kind):
    raise ValueError(f'{where} is {value!r}, expected {kind}.')


def read_record(path: str | os.PathLike, kind: type) -> Any:
  """Reads one record, for example `read_record(path, EvaluationResult)`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is not JSON or not such a record, naming the place.
  """
  return from_jsonable(kind, read_json(path), where=os.fspath(path))


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
    loss: what was bounded: 'textual' (distance to the full model's output) or
      'risk' (quality lost against the references).
    metric: the text metric m of the loss, for example 'rouge_l'.
    measure: the confidence measure, for example 'SoftmaxMargin'.
    num_examples: N, the calibration inputs.
    calibration_loss: mean loss of the setting on them, NaN if none.
    description: the guarantee in words.
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
    )


@dataclasses.dataclass(frozen=True)
class PolicyRow:
  """One way of decoding, measured on one split.

  Attributes:
    name: how the table calls it.
    kind: 'full', 'certified' (early exit at the certified threshold),
      'early_exit' (at any other), 'static' (every token at one layer), 'oracle'
      or 'baseline' (no decoding at all, such as copying the source).
    setting: the threshold, the layer, or None.
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


@dataclasses.dataclass(frozen=True)
class TimingRow:
  """Wall clock of one policy at one batch size.

  Attributes:
    name: the policy, as in `PolicyRow.name`.
    batch_size: rows decoded together.
    depth_loop: the depth loop that was fastest for this policy.
    milliseconds_per_step: median wall clock per step of the token loop (one
      token for each row of the batch), the encoder's share included.
    milliseconds_per_batch: median wall clock per batch.
    speed_up: the baseline's milliseconds per step over this one's.
    ceiling: the speed-up that memory traffic allows for the realised exit
      layers, NaN where it was not worked out.
    num_batches: different batches timed.
    num_repeats: times each was timed, interleaved with the other policies.
    mean_exit_layer: layers per decoded token in the timed batches.
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


@dataclasses.dataclass(frozen=True)
class DecodedText:
  """One decoded sequence, token by token, up to and including EOS.

  Attributes:
    text: the detokenised output.
    tokens: vocabulary ids.
    pieces: the ids as the tokenizer writes them ('\u2581' opens a word).
    exit_layers: layers used by each token, 1..L.
    confidences: confidence at the exit, NaN where the rule did not look.
  """

  text: str
  tokens: tuple[int, ...]
  pieces: tuple[str, ...]
  exit_layers: tuple[int, ...]
  confidences: tuple[float, ...]


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
    context: how all this was obtained.
    format_version: of this schema.
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
  format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class ClassifierLayer:
  """How the early-exit classifier does at one exit.

  A token is held back where confidence < 0.5; it should be where the exit's
  token is not the last layer's. Precision, recall and F1 are those of holding
  back, NaN where there is nothing to count.

  Attributes:
    exit_layer: the exit, in 1..L-1.
    agreement: share of target tokens on which it agrees with the last layer.
    precision: share of the tokens held back that should be.
    recall: share of the tokens that should be held back that are.
    f1: harmonic mean of the two.
    mean_confidence: over all target tokens, in [0, 1].
    cross_entropy: binary, in nats per target token.
  """

  exit_layer: int
  agreement: float
  precision: float
  recall: float
  f1: float
  mean_confidence: float
  cross_entropy: float


@dataclasses.dataclass(frozen=True)
class ClassifierEvaluation:
  """An early-exit classifier, measured on one split under teacher forcing.

  Attributes:
    task: the task's name.
    split: the split.
    num_tokens: target tokens counted at every exit.
    num_layers: L, the decoder layers.
    loss: what it was trained with: 'independent', 'balanced' or 'geometric'.
    steps: how long it was trained.
    layers: its rates at exits 1..L-1.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_tokens: int
  num_layers: int
  loss: str
  steps: int
  layers: tuple[ClassifierLayer, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True, eq=False)
class LossTable:
  """Losses of N inputs at J settings: what calibration reads.

  Attributes:
    losses: float64 [N, J]; a column of NaN was not decoded, because testing
      stopped before it.
    settings: J settings (numbers or dicts), from conservative to aggressive.
    mean_exit_layers: float64 [J], layers per decoded token, NaN as above.
    example_ids: N hashes of the inputs, all distinct.
    loss: the name of the loss.
    fingerprint: what the losses depend on besides the setting (parameters,
      split, policy, metric, lengths, dtype); columns are reused only if equal.
    format_version: of this schema.
  """

  losses: np.ndarray
  settings: tuple[Any, ...]
  mean_exit_layers: np.ndarray
  example_ids: tuple[str, ...]
  loss: str
  fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
  format_version: int = FORMAT_VERSION

  def __post_init__(self):
    expected = (len(self.example_ids), len(self.settings))
    if self.losses.shape != expected:
      raise ValueError(
        f'losses have shape {self.losses.shape}, expected {expected}: one row '
        'per example id and one column per setting.'
      )
    if self.mean_exit_layers.shape != expected[1:]:
      raise ValueError(
        f'mean_exit_layers have shape {self.mean_exit_layers.shape}, expected '
        f'{expected[1:]}.'
      )

  @property
  def num_examples(self) -> int:
    """N."""
    return len(self.example_ids)

  @property
  def computed(self) -> np.ndarray:
    """bool [J], the columns that hold losses."""
    return ~np.isnan(self.losses).any(axis=0)


def write_loss_table(path: str | os.PathLike, table: LossTable) -> None:
  """Writes a loss table as one .npz with a JSON header inside."""
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  header = {
    'settings': table.settings,
    'example_ids': table.example_ids,
    'loss': table.loss,
    'fingerprint': table.fingerprint,
    'format_version': table.format_version,
  }
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'wb') as file:
    np.savez(
      file,
      header=np.array(json.dumps(to_jsonable(header), allow_nan=False)),
      losses=table.losses,
      mean_exit_layers=table.mean_exit_layers,
    )
  os.replace(temporary, path)


def read_loss_table(path: str | os.PathLike) -> LossTable:
  """Reads a loss table.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if the file is not a loss table, naming it.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      header = json.loads(arrays['header'].item())
      return LossTable(
        losses=arrays['losses'],
        settings=tuple(header['settings']),
        mean_exit_layers=arrays['mean_exit_layers'],
        example_ids=tuple(header['example_ids']),
        loss=header['loss'],
        fingerprint=header['fingerprint'],
        format_version=header['format_version'],
      )
  except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{os.fspath(path)} is not a complete loss table ({error}); delete it '
      'and build it again.'
    ) from None


@dataclasses.dataclass(frozen=True)
class ViolationCount:
  """Calibrations on draws from a loss table that is taken for the population.

  Attributes:
    tolerance: what the risk must not exceed, in the units of the losses.
    p_value: the name of the p-value.
    near_setting: the setting of the grid just below whose risk the tolerance
      was put, None for a tolerance that was asked for.
    num_draws: draws with replacement, a calibration each.
    draw_size: n, the rows of a draw.
    num_violations: calibrations that chose a setting whose population risk is
      above the tolerance.
    rate_low: lower end of the Clopper-Pearson interval (95 %) of their rate.
    rate_high: its upper end.
    num_certified: calibrations that certified anything.
    chosen: J counts, how often each setting was certified.
    mean_risk: mean population risk of the choices, 0 (the full model) where
      nothing was certified.
    mean_exit_layer: mean layers per token of the choices, L where nothing was
      certified; NaN if L is not known and needed.
  """

  tolerance: float
  p_value: str
  near_setting: Any
  num_draws: int
  draw_size: int
  num_violations: int
  rate_low: float
  rate_high: float
  num_certified: int
  chosen: tuple[int, ...]
  mean_risk: float
  mean_exit_layer: float

  @property
  def rate(self) -> float:
    """The share of the calibrations that broke the tolerance."""
    return self.num_violations / self.num_draws

  @property
  def share_certified(self) -> float:
    """The share of the calibrations that certified anything."""
    return self.num_certified / self.num_draws


@dataclasses.dataclass(frozen=True)
class SplitStudy:
  """Random splits of a loss table, calibrated on one part, seen on the other.

  Attributes:
    tolerance: what the risk must not exceed, in the units of the losses.
    p_value: the name of the p-value.
    calibration_size: rows of the part that is calibrated on.
    test_size: rows of the rest.
    test_risks: per split, the mean loss of the rest at the chosen setting, 0
      where nothing was certified.
    num_above: splits whose test risk is above the tolerance. This counts a
      noisy estimate and may be more than the error rate allows for risks.
    num_certified: splits in which anything was certified.
    mean_exit_layer: as in `ViolationCount`.
  """

  tolerance: float
  p_value: str
  calibration_size: int
  test_size: int
  test_risks: tuple[float, ...]
  num_above: int
  num_certified: int
  mean_exit_layer: float

  @property
  def num_splits(self) -> int:
    """How many splits there were."""
    return len(self.test_risks)

  @property
  def share_above(self) -> float:
    """The share of the splits whose test risk is above the tolerance."""
    return self.num_above / self.num_splits


@dataclasses.dataclass(frozen=True)
class ToleranceCurve:
  """Risk and depth of what is chosen, against K tolerances.

  Attributes:
    p_value: the name of the p-value.
    num_draws: draws with replacement per tolerance.
    num_splits: random splits per tolerance.
    tolerances: K of them, ascending.
    mean_risks: K means over the draws of the chosen setting's population risk.
    low_risks: K quantiles of it, at 5 %.
    high_risks: K quantiles of it, at 95 %.
    mean_exit_layers: K means of the chosen setting's layers per token.
    low_exit_layers: K quantiles of them, at 5 %.
    high_exit_layers: K quantiles of them, at 95 %.
    split_risks: K means of the test risk over the splits.
  """

  p_value: str
  num_draws: int
  num_splits: int
  tolerances: tuple[float, ...]
  mean_risks: tuple[float, ...]
  low_risks: tuple[float, ...]
  high_risks: tuple[float, ...]
  mean_exit_layers: tuple[float, ...]
  low_exit_layers: tuple[float, ...]
  high_exit_layers: tuple[float, ...]
  split_risks: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ValidatedTable:
  """The guarantee, counted on one loss table.

  `counts`, `splits` and `certificates` are parallel: one entry per p-value and
  tolerance that was asked for.

  Attributes:
    name: what tells it from other tables of the comparison, by default its
      confidence measure.
    path: where the table was.
    checksum: of losses, settings and inputs: which table it was.
    task: the task, or ''.
    split: the split of the task, or ''.
    measure: the confidence measure, or ''.
    loss: the name of the loss.
    metric: the text metric of the loss, or ''.
    loss_range: the smallest and the largest value a loss can have.
    num_examples: N, the rows.
    num_layers: L, the decoder layers, None if the table does not say.
    settings: J settings, from conservative to aggressive.
    risks: J column means: the risks of the population.
    mean_exit_layers: J, layers per token.
    counts: violations at the tolerances asked for.
    near_counts: violations just below the risk of each setting, where they are
      likeliest.
    splits: the paper's splits.
    certificates: what the whole table certifies.
    curve: risk and depth against tolerance, None if not asked for.
    fingerprint: what the table itself says of the model, policy and decoder.
  """

  name: str
  path: str
  checksum: str
  task: str
  split: str
  measure: str
  loss: str
  metric: str
  loss_range: tuple[float, ...]
  num_examples: int
  num_layers: int | None
  settings: tuple[Any, ...]
  risks: tuple[float, ...]
  mean_exit_layers: tuple[float, ...]
  counts: tuple[ViolationCount, ...]
  near_counts: tuple[ViolationCount, ...]
  splits: tuple[SplitStudy, ...]
  certificates: tuple[CertificateSummary, ...]
  curve: ToleranceCurve | None = None
  fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Validation:
  """The guarantee, counted: one loss table or several of the same loss.

  Attributes:
    error_rate: how often a certificate may be wrong, the same everywhere.
    procedure: the name of the multiple testing procedure.
    seed: of draws and splits.
    tables: one entry per loss table, such as one per confidence measure.
    context: how all this was obtained.
    format_version: of this schema.
  """

  error_rate: float
  procedure: str
  seed: int
  tables: tuple[ValidatedTable, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class SettingCost:
  """What one setting of a grid cost.

  Attributes:
    setting: the setting.
    num_decoded: inputs decoded at it; the others were known to come out as at
      the setting before.
    seconds: wall clock of decoding them.
  """

  setting: Any
  num_decoded: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class CalibrationCost:
  """Where the time of a calibration went, in seconds.

  Attributes:
    num_examples: N.
    full_seconds: one pass of the full model over the N inputs.
    settings: the settings decoded.
    scoring_seconds: computing losses from texts.
    statistics_seconds: p-values and tests.
    compile_seconds: compiling, in none of the others.
    format_version: of this schema.
  """

  num_examples: int
  full_seconds: float
  settings: tuple[SettingCost, ...]
  scoring_seconds: float
  statistics_seconds: float
  compile_seconds: float
  format_version: int = FORMAT_VERSION

  @property
  def total_seconds(self) -> float:
    """Everything but compilation."""
    return (
      self.full_seconds
      + sum(entry.seconds for entry in self.settings)
      + self.scoring_seconds
      + self.statistics_seconds
    )

  @property
  def ratio(self) -> float:
    """Calibration time over the time of one full-model pass."""
    return self.total_seconds / self.full_seconds

  def describe(self) -> str:
    """Says it in a sentence."""
    decoding = sum(entry.seconds for entry in self.settings)
    decoded = sum(entry.num_decoded for entry in self.settings)
    return (
      f'Calibration cost {self.ratio:.2f} full-model passes of '
      f'{self.num_examples} inputs: full model {self.full_seconds:.1f} s, '
      f'{len(self.settings)} settings {decoding:.1f} s ({decoded} of '
      f'{len(self.settings) * self.num_examples} decodes, the others known '
      f'from the setting before), scoring {self.scoring_seconds:.1f} s, '
      f'statistics {self.statistics_seconds:.1f} s; compilation '
      f'{self.compile_seconds:.1f} s beside it.'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRows:
  """Which inputs a training run has seen, as hashes.

  Attributes:
    trained: uint64 hashes of the normalised inputs it trained on, sorted.
    selected: those that it chose checkpoints with.
  """

  trained: np.ndarray
  selected: np.ndarray


# Beside a run's checkpoints.
TRAINING_ROWS_NAME = 'training_rows.npz'


def write_training_rows(
  path: str | os.PathLike, trained: Any, selected: Any
) -> None:
  """Writes the input hashes of a training run, sorted, each once.

  Args:
    path: the .npz file, MODEL_DIR/training_rows.npz.
    trained: 64-bit hashes of the inputs trained on.
    selected: of the inputs that checkpoints were chosen with.
  """
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'wb') as file:
    np.savez(
      file,
      trained=np.unique(np.asarray(trained, np.uint64)),
      selected=np.unique(np.asarray(selected, np.uint64)),
    )
  os.replace(temporary, path)


def read_training_rows(path: str | os.PathLike) -> TrainingRows:
  """Reads the input hashes of a training run.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it does not hold such hashes, naming it.
  """
  path = os.fspath(path)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      rows = TrainingRows(arrays['trained'], arrays['selected'])
  except (
    AttributeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise ValueError(
      f'{path} does not hold the rows of a training run ({error}); it is '
      'written by calm_jax.cli.train: restart that job to write it again.'
    ) from None
  for name in ('trained', 'selected'):
    array = getattr(rows, name)
    if array.dtype != np.uint64 or array.ndim != 1:
      raise ValueError(
        f'{path}: {name} has dtype {array.dtype} and shape {array.shape}, '
        'expected a list of uint64 hashes.'
      )
  return rows

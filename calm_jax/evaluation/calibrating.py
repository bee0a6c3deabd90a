"""Calibration in one call: decodes, losses, tests, and the certificate.

The full model decodes the inputs once; then one setting after the other does,
from conservative to aggressive, until testing stops (CALM, arXiv 2207.07061,
with Learn then Test, arXiv 2110.01052). `calibration.AnytimeSequence` has rows
decoded by blocks instead, until it is decided.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import calibration, decoding, interfaces, records
from calm_jax.calibration import p_values
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import used_rows
from calm_jax.evaluation.calibrated_inputs import seen_rows
from calm_jax.evaluation.calibrated_rows import (
  AllRows,
  CalibratedRows,
  MakeGrid,
)
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.calibration_plan import CalibrationPlan
from calm_jax.evaluation.dataset_decoder import DatasetDecoder
from calm_jax.evaluation.decode_dataset import (
  Batch,
  references_of,
)
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.distinct_inputs import DistinctInputs, say_distinct
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.promises import Promise
from calm_jax.evaluation.row_blocks import RowBlocks
from calm_jax.evaluation.setting_grid import DecodesSettings, SettingGrid
from calm_jax.records import decoding_contexts


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
  """A calibration and what it was made of.

  Attributes:
    certificate: what was certified.
    full: the full model's decode.
    table: the losses of N inputs at J settings, NaN where testing stopped.
    cost: where the time went.
    places: int [M], for each of the rows that were given, which of the N inputs
      it is: those that the model reads alike are one. -1 for those that testing
      did not come to (`calibration.AnytimeSequence`).
  """

  certificate: Certificate
  full: DecodedDataset
  table: records.LossTable
  cost: records.CalibrationCost
  places: np.ndarray

  def of_rows(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the full model's tokens [M, T] and the losses [M, J] of all rows.

    Of those that testing did not come to, 0 and NaN.
    """
    seen = self.places >= 0
    tokens = np.where(seen[:, np.newaxis], self.full.tokens[self.places], 0)
    losses = self.table.losses[self.places]
    return tokens, np.where(seen[:, np.newaxis], losses, np.nan)


def calibrate(
  bound: interfaces.BoundDecoder,
  batches: Sequence[Batch],
  policy: decoding.ComputePolicy | interfaces.ExitRule,
  settings: Sequence[float | dict[str, Any]],
  *,
  detokenize: Callable[[Sequence[int]], str],
  max_length: int,
  eos_id: int = 1,
  suppressed_tokens: Sequence[int] = (),
  reference: interfaces.BoundDecoder | None = None,
  loss: str | ConsistencyLoss = 'textual',
  tolerance: float = 0.1,
  promises: Sequence[Promise | tuple] | None = None,
  error_rate: float = 0.05,
  context: Mapping[str, Any] | None = None,
  uses_in: str | os.PathLike | None = None,
  progress: Callable[[str], None] | None = None,
  **plan: Any,
) -> Certificate:
  """Certifies the most aggressive setting whose loss is surely tolerable.

  Args:
    bound: the decoder with its parameters.
    batches: of inputs that chose nothing: neither parameters nor settings; as
      for `decode_dataset`, with `references` where the loss needs them.
    policy: the policy, or its exit rule alone; what the settings set does not
      matter.
    settings: thresholds in [0, 1], strictly decreasing; or {path: value} as
      `decoding.with_setting` takes it, from conservative to aggressive.
    detokenize: ids without padding and without EOS -> text.
    max_length: T, the most tokens of an output, EOS included.
    eos_id: the id that ends a sequence.
    suppressed_tokens: ids that are never said, as `runs.LoadedRun` has them; a
      certificate holds for these alone.
    reference: where `bound` has weights in 8 bits, the same model in float,
      whose outputs losses are measured against: what the weights change is
      certified together with what the exits change.
    loss: see `CalibrationPlan`.
    tolerance: what the expected loss may be at most, in its units.
    promises: several losses to bound together instead of these two; see
      `CalibrationPlan`.
    error_rate: how often the certificate may be wrong, in (0, 1).
    context: kept in the certificate. What `bound` cannot know, jobs ask for:
      `parameters` and `tokenizer` (their fingerprints), `prefix`,
      `input_length`; `runs.load_run(...).context()` has all of it.
    uses_in: a folder in which it is noted that these inputs were used, and
      where that is looked up; None for neither.
    progress: gets a line to print now and then.
    **plan: `metric`, `p_value`, `procedure` and `spent` of `CalibrationPlan`.

  Raises:
    ValueError: for settings out of order, numbers outside their range, or
      inputs without the references that the loss needs.
  """
  decode = DatasetDecoder(
    bound=bound,
    detokenize=detokenize,
    max_length=max_length,
    eos_id=eos_id,
    suppressed_tokens=tuple(suppressed_tokens),
    reference=reference,
    progress=progress,
  )
  plan = CalibrationPlan(
    settings=settings,
    loss=loss,
    tolerance=tolerance,
    promises=promises,
    error_rate=error_rate,
    **plan,
  )
  return run_calibration(
    decode,
    batches,
    policy,
    plan,
    context=context,
    uses_in=uses_in,
    progress=progress,
  ).certificate


def run_calibration(
  decode: DecodesSettings,
  batches: Sequence[Batch],
  policy: decoding.ComputePolicy | interfaces.ExitRule,
  plan: CalibrationPlan,
  *,
  context: Mapping[str, Any] | None = None,
  full_grid: bool = False,
  table_path: str | os.PathLike | None = None,
  uses_in: str | os.PathLike | None = None,
  progress: Callable[[str], None] | None = None,
) -> Calibration:
  """Calibrates as `calibrate` does, and returns all that it came across.

  Args:
    decode: decodes the batches under any policy: a `DatasetDecoder`, or a
      `DatasetClassifier`.
    batches: as for `calibrate`.
    policy: as for `calibrate`.
    plan: what is tested.
    context: kept in the certificate, and in the table as its fingerprint.
    full_grid: decode what lies beyond the setting where testing stops as well;
      the certificate is the same.
    table_path: an .npz that the table is written to as it grows.
    uses_in: as for `calibrate`.
    progress: gets a line now and then.

  Raises:
    ValueError: as `calibrate`.
  """
  say = progress if progress is not None else lambda line: None
  policy = decoding.at_output_length(
    decoding.as_policy(policy), decode.max_length
  )
  policy.check_composition()
  if policy.verifies:
    raise ValueError(
      f'{type(policy.verification).__name__} checks every draft, so the output '
      "is the full model's at any setting: there is nothing to certify. Decode "
      'with it as it is, or calibrate the policy without verification'
    )
  settings = plan.settings_of(policy)
  _check_paths(policy, settings)
  meter, left_open = CostMeter(), plan.left_open
  plan = checked_before(plan, batches)
  inputs = say_distinct(batches, say)
  rows = _rows_of(
    plan,
    inputs,
    lambda batches: SettingGrid(decode, batches, policy, meter, settings),
    meter,
    full_grid,
  )
  full = rows.begin(say)
  plan = plan.for_texts(full.texts, what="the full model's outputs")
  losses, statistics = plan.losses(), plan.statistics()
  loss = losses[0]
  if left_open:
    metrics = dict.fromkeys(loss.metric_name for loss in losses)
    say(f'metric {", ".join(metrics)}, by the alphabet of the texts')
  context = {
    'loss': loss.name,
    'metric': loss.metric_name,
    'num_layers': full.num_layers,
    # Of the decoder, its parameters and tokenizer, where it knows them.
    **decode.context(policy, settings[0]).write(),
    **(context or {}),
    'examples': records.digest_of_rows(inputs.example_ids),
  }
  versions = context.pop('versions')
  history = used_rows.history_of(
    _use(plan, settings, statistics, inputs.example_ids, context),
    uses_in,
    spent=plan.spent,
    share=decode.share,
  )
  statistics['error_rate'] = history.level
  if history.others:
    say(history.describe())
  table = rows.fill(
    settings,
    losses,
    statistics,
    path=table_path,
    fingerprint={**context, 'loss_range': loss.loss_range},
    progress=progress,
  )
  certificate = rows.certify(
    table,
    {
      **context,
      'versions': versions,
      'seen': records.to_jsonable(seen_rows(inputs, rows.full())),
      **encoder_layers_of(
        table.mean_encoder_layers.tolist(), full.num_encoder_layers
      ),
      **stated(history, uses_in),
    },
    **statistics,
  )
  rows.note_traces()
  return Calibration(
    certificate, rows.full(), table, meter.result(), rows.places()
  )


def _rows_of(
  plan: CalibrationPlan,
  inputs: DistinctInputs,
  make_grid: MakeGrid,
  meter: CostMeter,
  full_grid: bool,
) -> CalibratedRows:
  """Returns the rows as the procedure of the plan takes them."""
  if isinstance(plan.procedure, calibration.AnytimeSequence):
    return RowBlocks(
      inputs,
      make_grid,
      meter,
      full_grid=full_grid,
      procedure=plan.procedure,
      p_value=plan.p_value or calibration.betting,
    )
  return AllRows(inputs, make_grid, meter, full_grid=full_grid)


def _check_paths(policy: decoding.ComputePolicy, settings: Sequence) -> None:
  """Raises ValueError unless all settings set the same fields of the policy."""
  paths = [decoding.setting_paths(policy, setting) for setting in settings]
  for number, found in enumerate(paths):
    if found != paths[0]:
      raise ValueError(
        f'setting {number} sets {", ".join(found)}, the first one '
        f'{", ".join(paths[0])}; let all of them set the same'
      )


def checked_before(
  plan: CalibrationPlan, batches: Sequence[Batch]
) -> CalibrationPlan:
  """Returns the plan for the references of the inputs, before any is decoded.

  Raises:
    ValueError: if the loss needs references that are missing, or its metric
      does not see them.
  """
  references = [texts for batch in batches for texts in references_of(batch)]
  texts = [text for row in references for text in row]
  for_texts = plan.for_texts(texts, what='the references')
  for loss in for_texts.losses():
    loss.check_references(references)
  # Without any, a metric that is left open is for the outputs to choose.
  return for_texts if texts else plan


def _use(
  plan: CalibrationPlan,
  settings: Sequence[float | dict[str, Any]],
  statistics: Mapping[str, Any],
  example_ids: Sequence[str],
  context: Mapping[str, Any],
) -> records.RowUse:
  """Returns this calibration as a use of its rows."""
  promises = statistics['promises']
  return records.RowUse(
    rows=context['examples'],
    example_ids=tuple(sorted(example_ids)),
    settings=tuple(settings),
    loss=context['loss'],
    metric=context['metric'],
    tolerance=promises[0].tolerance,
    error_rate=float(plan.error_rate),
    p_value=p_values.name_of(statistics['p_value']),
    procedure=statistics['procedure'].name,
    about={
      name: value
      for name, value in records.DecodingContext.read(context).write().items()
      if name not in decoding_contexts.TOLD
    },
    promises=tuple(
      records.PromisedLoss(
        loss=bound.loss, metric=bound.metric, tolerance=bound.tolerance
      )
      for bound in (promises if len(promises) > 1 else ())
    ),
  )


def encoder_layers_of(
  means: Sequence[float], num_encoder_layers: int | None
) -> dict[str, Any]:
  """Returns what a certificate states of the encoder; nothing if all of it ran.

  Args:
    means: encoder layers per source at each setting; NaN where all run for all,
      and where nothing was decoded.
    num_encoder_layers: L_enc.
  """
  if all(map(math.isnan, means)):
    return {}
  return {
    'num_encoder_layers': num_encoder_layers,
    'mean_encoder_layers': [
      None if math.isnan(mean) else mean for mean in means
    ],
  }


def stated(
  history: records.RowHistory, uses_in: str | os.PathLike | None
) -> dict[str, Any]:
  """Returns what a certificate states of other uses; nothing if none is kept.

  A number that the user says was spent is stated in any case.
  """
  if uses_in is None and not history.counted:
    return {}
  return {'row_history': records.to_jsonable(history)}

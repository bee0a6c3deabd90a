"""Turns decoded datasets into the rows of the evaluation table.

One table holds the full model, the certified early exit, every token at layer
1, every token at the rounded-up mean exit layer (what the same depth buys when
it is spent without looking) and the oracle (what a perfect confidence measure
would exit at); where sources leave the encoder, every source at such encoder
layers, too. All are decodes of the same inputs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import decoding, exits, records
from calm_jax.evaluation.decode_dataset import oracle_policy
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.loss_table import Loss
from calm_jax.evaluation.promise_outcomes import mean_and_error

Quality = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """What is measured of every decode.

  Attributes:
    quality: name -> (predictions, references) -> percent, such as
      `corpus_metrics.CORPUS_METRICS`.
    textual: the loss against the full model's texts.
    risk: the quality lost against the references, clipped at 0 per input or
      signed; None without references.
  """

  quality: Mapping[str, Quality]
  textual: Loss
  risk: Loss | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedDecode:
  """A decode with its name, kind and setting, as in `records.PolicyRow`."""

  name: str
  kind: str
  setting: Any
  decoded: DecodedDataset


def decode_for_comparison(
  decode: Callable[..., DecodedDataset],
  policy: decoding.ComputePolicy,
  *,
  setting: Any,
  certified: bool = True,
  full: DecodedDataset | None = None,
  progress: Callable[[str], None] | None = None,
) -> tuple[ComparedDecode, ...]:
  """Decodes one split under the five policies of the table.

  Args:
    decode: `decode_dataset` with everything bound but `policy` and
      `policy_for_batch`.
    policy: the early-exit policy; its other slots serve all five.
    setting: its setting (a threshold), for the table.
    certified: whether the setting was certified. If nothing was, `policy`
      is the full model and the row says so.
    full: the full decode, if there is one already.
    progress: gets a line per decode.

  Returns:
    full, early exit, static layer 1, static layer at the rounded-up mean exit
    layer (left out if that is layer 1 or the last), the same of the encoder
    where sources leave it, oracle. Where no token exits, static layers are of
    the encoder alone.
  """
  say = progress if progress is not None else lambda line: None

  if full is None:
    say('decoding with the full model')
    full = decode(policy=decoding.full_model(policy))
  say(f'decoding with early exit at {setting}')
  early = decode(policy=policy)
  compared = [
    ComparedDecode('full model', 'full', None, full),
    ComparedDecode(
      'early exit, certified' if certified else 'early exit, not certified',
      'certified' if certified else 'early_exit',
      setting,
      early,
    ),
  ]
  for name, setting, static in _static_rows(policy, early):
    say(f'decoding with {name}')
    decoded = decode(policy=static)
    compared.append(ComparedDecode(name, 'static', setting, decoded))
  say('decoding with the oracle')
  oracle = decode(policy_for_batch=oracle_policy(full, policy))
  compared.append(ComparedDecode('oracle', 'oracle', None, oracle))
  return tuple(compared)


def _static_rows(
  policy: decoding.ComputePolicy, early: DecodedDataset
) -> list[tuple[str, Any, decoding.ComputePolicy]]:
  """Returns name, setting and policy of the static exits of the table."""
  rows: list[tuple[str, Any, decoding.ComputePolicy]] = []
  if not exits_encoder_alone(policy):
    for layer in static_layers(early.mean_exit_layer, early.num_layers):
      rows.append(_static_row(policy, layer))
  if early.num_encoder_layers is not None and not policy.encoder_exit.whole:
    for layer in static_layers(
      early.mean_encoder_layer, early.num_encoder_layers
    ):
      rows.append(_static_encoder_row(policy, layer))
  return rows


def _static_row(policy: decoding.ComputePolicy, layer: int):
  return f'static, layer {layer}', layer, static_policy(policy, layer)


def _static_encoder_row(policy: decoding.ComputePolicy, layer: int):
  setting = f'encoder layer {layer}'
  stops = decoding.StoppedEncoder(exits.FixedExit(layer))
  static = dataclasses.replace(policy, encoder_exit=stops)
  return f'static, {setting}', setting, static


def exits_encoder_alone(policy: decoding.ComputePolicy) -> bool:
  """Whether sources leave the encoder early, and tokens never."""
  tokens_stay = isinstance(policy.exit_rule, exits.NeverExit)
  return tokens_stay and not policy.encoder_exit.whole


def static_policy(
  policy: decoding.ComputePolicy, layer: int
) -> decoding.ComputePolicy:
  """Returns the policy that runs the same first layers for every token."""
  return dataclasses.replace(
    policy,
    layer_plan=decoding.EveryLayer(),
    exit_rule=exits.FixedExit(layer),
  )


def sweep(
  decode: Callable[..., DecodedDataset],
  policy: decoding.ComputePolicy,
  thresholds: Sequence[float],
  compared: Sequence[ComparedDecode],
  *,
  scoring: Scoring,
  progress: Callable[[str], None] | None = None,
) -> tuple[records.PolicyRow, ...]:
  """Returns further points of the figure: thresholds and all static exits.

  Args:
    decode: as for `decode_for_comparison`.
    policy: the policy, at any threshold.
    thresholds: in [0, 1], for a policy that has one; () for no points at all.
    compared: what was decoded before, the full model first.
    scoring: how decodes are scored.
    progress: gets a line per decode.
  """
  say = progress if progress is not None else lambda line: None
  full = compared[0].decoded
  points = []
  has_threshold = decoding.threshold_path(policy) is not None
  for threshold in thresholds if has_threshold else ():
    early = decoding.with_setting(policy, threshold)
    points.append((f'threshold {threshold:g}', 'early_exit', threshold, early))
  there = {entry.setting for entry in compared if entry.kind == 'static'}
  of_encoder = exits_encoder_alone(policy)
  number = full.num_encoder_layers if of_encoder else full.num_layers
  for layer in range(1, (number or 0) if thresholds else 0):
    row = _static_encoder_row if of_encoder else _static_row
    name, setting, static = row(policy, layer)
    if setting not in there:
      points.append((name, 'static', setting, static))
  rows = []
  for name, kind, setting, at in points:
    say(f'for the figure: {name}')
    entry = ComparedDecode(name, kind, setting, decode(policy=at))
    rows.append(score(entry, full=full, scoring=scoring))
  return tuple(rows)


def static_layers(mean_exit_layer: float, num_layers: int) -> tuple[int, ...]:
  """Returns the static exits of the table: 1 and the rounded-up mean.

  >>> static_layers(2.3, 8), static_layers(1.0, 8), static_layers(7.5, 8)
  ((1, 3), (1,), (1,))
  """
  layers = (1, math.ceil(mean_exit_layer))
  return tuple(sorted({layer for layer in layers if layer < num_layers}))


def compare(
  compared: Sequence[ComparedDecode], *, scoring: Scoring
) -> tuple[records.PolicyRow, ...]:
  """Scores decodes of the same inputs; one of them is of kind 'full'.

  Raises:
    ValueError: if there is not exactly one full decode, or a decode is of other
      inputs.
  """
  fulls = [entry.decoded for entry in compared if entry.kind == 'full']
  if len(fulls) != 1:
    raise ValueError(
      f'expected one decode of kind "full" to compare with, got {len(fulls)}.'
    )
  full = fulls[0]
  return tuple(score(entry, full=full, scoring=scoring) for entry in compared)


def score(
  entry: ComparedDecode, *, full: DecodedDataset, scoring: Scoring
) -> records.PolicyRow:
  """Scores one decode against the references and the full decode.

  Raises:
    ValueError: if it is of other inputs than the full decode.
  """
  decoded = entry.decoded
  if decoded.example_ids != full.example_ids:
    raise ValueError(
      f'{entry.name!r} was decoded on other inputs, or in another order, than '
      'the full model; decode the same batches.'
    )
  has_references = all(full.references)
  textual = mean_and_error(scoring.textual(decoded, full))
  risk = (math.nan, math.nan)
  if scoring.risk is not None and has_references:
    risk = mean_and_error(scoring.risk(decoded, full))
  return records.PolicyRow(
    name=entry.name,
    kind=entry.kind,
    setting=entry.setting,
    quality={
      name: float(metric(decoded.texts, full.references))
      for name, metric in scoring.quality.items()
      if has_references
    },
    textual_consistency=textual[0],
    textual_standard_error=textual[1],
    risk_consistency=risk[0],
    risk_standard_error=risk[1],
    mean_exit_layer=decoded.mean_exit_layer,
    exit_layer_histogram=decoded.exit_layer_histogram(),
    num_tokens=decoded.num_tokens,
    work=decoded.total_work(),
    mean_encoder_layer=decoded.mean_encoder_layer,
  )


def baseline_row(
  name: str,
  texts: Sequence[str],
  *,
  full: DecodedDataset,
  scoring: Scoring,
) -> records.PolicyRow:
  """Scores texts that no decoder made, such as a copy of each source."""
  nothing = np.full((full.num_examples, 1), -1, dtype=np.int32)
  decoded = dataclasses.replace(
    full,
    texts=tuple(texts),
    exit_layers=nothing,
    tokens=0 * nothing,
    work=0 * full.work,
    encoder_exit_layers=None,
  )
  entry = ComparedDecode(name, 'baseline', None, decoded)
  return score(entry, full=full, scoring=scoring)

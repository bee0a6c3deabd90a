"""Builds the loss table that calibration reads, one column per setting.

Calibration tests settings one after the other and often stops early, so a
column is decoded only when the procedure asks for it. The table on disk grows
with each finished column; what an interrupted run has decoded is kept by its
`DecodeStore`, so that building the table again is soon back where it was.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.evaluation.decoded_dataset import DecodedDataset

Loss = Callable[[DecodedDataset, DecodedDataset], np.ndarray]


def build_loss_table(
  decode: Callable[[Any], DecodedDataset],
  settings: Sequence[Any],
  *,
  loss: Loss,
  loss_name: str,
  full: DecodedDataset,
  others: Sequence[tuple[records.OtherLoss, Loss]] = (),
  next_column: Callable[[np.ndarray], int | None] | None = None,
  full_grid: bool = False,
  path: str | os.PathLike | None = None,
  fingerprint: Mapping[str, Any] | None = None,
  progress: Callable[[str], None] | None = None,
) -> records.LossTable:
  """Decodes settings and measures their losses against the full model.

  Args:
    decode: setting -> the decode of the same inputs as `full`.
    settings: J settings (numbers or dicts) from conservative to aggressive,
      fixed before any loss was seen.
    loss: (early, full) -> float [N], such as a `ConsistencyLoss`.
    loss_name: what to call it in the table.
    full: the full model's decode.
    others: further losses of the same decodes, with what to call them.
    next_column: losses [N, J], or [K, N, J] with others, so far (NaN where not
      decoded) -> the column needed next, None when testing has stopped; what a
      procedure's `next_test` says once p-values are made of the losses. Without
      it every column is decoded.
    full_grid: decode what `next_column` did not ask for as well. The
      certificate is the same; the table shows what lies beyond it.
    path: an .npz that the table is written to after each column.
    fingerprint: what the losses depend on besides the setting (parameters,
      split, measure, metric, lengths, dtype); goes into the table.
    progress: gets a line per column.

  Returns:
    The table.

  Raises:
    ValueError: if there are no settings, two are equal, an input occurs twice,
      a decode is of other inputs, or a loss is not finite.
  """
  table = _empty_table(
    settings, full, loss_name, fingerprint, [other for other, _ in others]
  )
  losses = [loss, *(measure for _, measure in others)]
  say = progress if progress is not None else lambda line: None
  for column in _columns(table, next_column, full_grid):
    say(f'setting {table.settings[column]} ({column + 1} of {len(settings)})')
    _fill_column(table, column, decode, losses, full)
    if path is not None:
      records.write_loss_table(path, table)
    say(result_line(table, column))
  return table


def _columns(
  table: records.LossTable,
  next_column: Callable[[np.ndarray], int | None] | None,
  full_grid: bool,
):
  """Yields columns to decode; the caller fills the table as it goes."""
  while next_column is not None:
    column = next_column(_all_losses(table))
    if column is None:
      break
    if table.computed[column]:
      raise ValueError(f'next_column asks for column {column} a second time.')
    yield column
  if next_column is None or full_grid:
    for column in np.flatnonzero(~table.computed):
      yield int(column)


def _all_losses(table: records.LossTable) -> np.ndarray:
  """Returns losses [N, J], or [K, N, J] where there are others."""
  if not table.others:
    return table.losses.copy()
  return np.concatenate([table.losses[None], table.other_losses])


def _empty_table(
  settings, full, loss_name, fingerprint, others
) -> records.LossTable:
  """Checks settings and inputs and returns a table without losses."""
  if not len(settings):
    raise ValueError('settings is empty; give at least one setting.')
  keys = [_key(setting) for setting in settings]
  repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
  if repeated:
    raise ValueError(f'setting {repeated[0]} occurs twice in settings.')
  num_repeated = full.num_examples - len(set(full.example_ids))
  if num_repeated:
    raise ValueError(
      f'{num_repeated} of {full.num_examples} inputs occur more than once; '
      'calibration counts inputs, so keep one row per input.'
    )
  return records.LossTable(
    losses=np.full((full.num_examples, len(settings)), np.nan),
    settings=tuple(settings),
    mean_exit_layers=np.full(len(settings), np.nan),
    example_ids=full.example_ids,
    loss=loss_name,
    fingerprint={**(fingerprint or {}), 'full': digest_of(full)},
    others=tuple(others),
  )


def _fill_column(
  table: records.LossTable, column: int, decode, losses: Sequence[Loss], full
) -> None:
  """Decodes one column and puts its losses into the table."""
  setting = table.settings[column]
  early = decode(setting)
  if early.example_ids != full.example_ids:
    raise ValueError(
      f'the decode at setting {setting} is of other inputs, or in another '
      'order, than the full decode; decode the same batches.'
    )
  found = measured(losses, early, full, setting)
  # All of them or none: testing asks for the losses of a decode together.
  table.losses[:, column], *others = found
  for number, values in enumerate(others):
    table.other_losses[number, :, column] = values
  table.mean_exit_layers[column] = early.mean_exit_layer
  table.mean_layers_run[column] = early.mean_layers_run
  table.mean_encoder_layers[column] = early.mean_encoder_layer


def measured(
  losses: Sequence[Loss], early: DecodedDataset, full: DecodedDataset, setting
) -> list[np.ndarray]:
  """Returns every loss of the decodes, float64 [N] each.

  Raises:
    ValueError: if one is not finite or not one number per input.
  """
  found = [np.asarray(loss(early, full), dtype=np.float64) for loss in losses]
  for values in found:
    if values.shape != (full.num_examples,) or not np.isfinite(values).all():
      raise ValueError(
        f'the loss at setting {setting} has shape {values.shape} and '
        f'{int((~np.isfinite(values)).sum())} values that are not finite; '
        f'expected {full.num_examples} finite numbers, one per input.'
      )
  return found


def result_line(table: records.LossTable, column: int) -> str:
  """Returns what came out at a setting."""
  means = ', '.join(
    f'mean {one.loss} loss {np.nanmean(one.losses[:, column]):.4f}'
    for one in table.alone()
  )
  layers = layers_in_words(
    table.mean_exit_layers[column],
    table.mean_layers_run[column],
    table.mean_encoder_layers[column],
  )
  return f'setting {table.settings[column]}: {means}, {layers}'


def layers_in_words(
  exit_layer: float, layers_run: float, encoder_layer: float = math.nan
) -> str:
  """Says where tokens left, and what else ran or what of it did not.

  Args:
    exit_layer: the mean exit layer, 1..L.
    layers_run: layers run per token.
    encoder_layer: encoder layers per source; NaN where all run for all.
  """
  words = f'mean exit layer {exit_layer:.2f}'
  if layers_run > exit_layer + 0.005:
    words += f', {layers_run:.2f} layers run with those caught up later'
  elif layers_run < exit_layer - 0.005:
    words += f', {layers_run:.2f} layers run, the others left out'
  if not math.isnan(encoder_layer):
    words += f', mean encoder layer {encoder_layer:.2f}'
  return words


def digest_of(full: DecodedDataset) -> str:
  """Returns a hash of what every loss is measured against."""
  content = _key([full.texts, full.references]).encode()
  return hashlib.sha256(content).hexdigest()[:16]


def _key(value: Any) -> str:
  """Returns a text that is equal for settings that are equal on disk."""
  return json.dumps(records.to_jsonable(value), sort_keys=True)

"""Builds the loss table that calibration reads, one column per setting.

Calibration tests settings one after the other and often stops early, so a
column is decoded only when the procedure asks for it. Each finished column is
saved, and an interrupted run takes it up again: decoding is what costs, and a
column depends on nothing but its setting and the fingerprint of the rest.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.evaluation import text_metrics
from calm_jax.evaluation.decode_dataset import DecodedDataset

Loss = Callable[[DecodedDataset, DecodedDataset], np.ndarray]


def build_loss_table(
  decode: Callable[[Any], DecodedDataset],
  settings: Sequence[Any],
  *,
  loss: Loss,
  loss_name: str,
  full: DecodedDataset,
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
    loss: (early, full) -> float [N], for example `textual_loss(...)`.
    loss_name: what to call it in the table.
    full: the full model's decode.
    next_column: losses [N, J] so far (NaN where not decoded) -> the column
      needed next, None when testing has stopped; what a procedure's
      `next_test` says once p-values are made of the losses. Without it every
      column is decoded.
    full_grid: decode what `next_column` did not ask for as well. The
      certificate is the same; the table shows what lies beyond it.
    path: an .npz where finished columns are kept and looked up.
    fingerprint: what the losses depend on besides the setting (parameters,
      split, measure, metric, lengths, dtype). Columns found at `path` are used
      if it, the loss and the inputs are the same; otherwise they are replaced.
    progress: gets a line per column.

  Returns:
    The table.

  Raises:
    ValueError: if there are no settings, two are equal, an input occurs twice,
      a decode is of other inputs, or a loss is not finite.
  """
  table = _empty_table(settings, full, loss_name, fingerprint)
  say = progress if progress is not None else lambda line: None
  if path is not None:
    table = _with_saved_columns(table, path, say)
  # Saved columns count as decoded only when they are asked for, so that the
  # table of a resumed run is the table of an uninterrupted one.
  wanted = np.full_like(table.losses, np.nan)
  for column in _columns(wanted, next_column, full_grid):
    if not table.computed[column]:
      say(f'setting {table.settings[column]} ({column + 1} of {len(settings)})')
      table = _with_column(table, column, decode, loss, full)
      if path is not None:
        records.write_loss_table(path, table)
    wanted[:, column] = table.losses[:, column]
    say(
      f'setting {table.settings[column]}: mean {loss_name} loss '
      f'{wanted[:, column].mean():.4f}, mean exit layer '
      f'{table.mean_exit_layers[column]:.2f}'
    )
  asked = ~np.isnan(wanted).any(axis=0)
  return dataclasses.replace(
    table,
    losses=wanted,
    mean_exit_layers=np.where(asked, table.mean_exit_layers, np.nan),
  )


def textual_loss(metric: text_metrics.Metric) -> Loss:
  """Makes the loss 1 - m(early, full) of a metric m: no references needed."""

  def loss(early: DecodedDataset, full: DecodedDataset) -> np.ndarray:
    return text_metrics.textual_consistency(metric, early.texts, full.texts)

  return loss


def risk_loss(metric: text_metrics.Metric) -> Loss:
  """Makes the loss max(0, m(full, references) - m(early, references))."""

  def loss(early: DecodedDataset, full: DecodedDataset) -> np.ndarray:
    return text_metrics.risk_consistency(
      metric, early.texts, full.texts, full.references
    )

  return loss


def _columns(
  losses: np.ndarray,
  next_column: Callable[[np.ndarray], int | None] | None,
  full_grid: bool,
):
  """Yields columns to decode; the caller fills `losses` as it goes."""
  num_settings = losses.shape[1]
  while next_column is not None:
    column = next_column(losses.copy())
    if column is None:
      break
    if not np.isnan(losses[:, column]).all():
      raise ValueError(f'next_column asks for column {column} a second time.')
    yield column
  if next_column is None or full_grid:
    for column in range(num_settings):
      if np.isnan(losses[:, column]).all():
        yield column


def _empty_table(settings, full, loss_name, fingerprint) -> records.LossTable:
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
    fingerprint={**(fingerprint or {}), 'full': _digest(full)},
  )


def _with_saved_columns(
  table: records.LossTable, path: str | os.PathLike, say
) -> records.LossTable:
  """Returns the table with the columns that an earlier run left at `path`."""
  if not os.path.exists(path):
    return table
  saved = records.read_loss_table(path)
  if _identity(saved) != _identity(table):
    say(f'{os.fspath(path)} is of another run and will be replaced.')
    return table
  places = {_key(setting): j for j, setting in enumerate(saved.settings)}
  losses = table.losses.copy()
  mean_exit_layers = table.mean_exit_layers.copy()
  for column, setting in enumerate(table.settings):
    place = places.get(_key(setting))
    if place is not None:
      losses[:, column] = saved.losses[:, place]
      mean_exit_layers[column] = saved.mean_exit_layers[place]
  return dataclasses.replace(
    table, losses=losses, mean_exit_layers=mean_exit_layers
  )


def _with_column(
  table: records.LossTable, column: int, decode, loss: Loss, full
) -> records.LossTable:
  """Returns the table with one column decoded."""
  setting = table.settings[column]
  early = decode(setting)
  if early.example_ids != full.example_ids:
    raise ValueError(
      f'the decode at setting {setting} is of other inputs, or in another '
      'order, than the full decode; decode the same batches.'
    )
  values = np.asarray(loss(early, full), dtype=np.float64)
  if values.shape != (table.num_examples,) or not np.isfinite(values).all():
    raise ValueError(
      f'the loss at setting {setting} has shape {values.shape} and '
      f'{int((~np.isfinite(values)).sum())} values that are not finite; '
      f'expected {table.num_examples} finite numbers, one per input.'
    )
  losses = table.losses.copy()
  losses[:, column] = values
  mean_exit_layers = table.mean_exit_layers.copy()
  mean_exit_layers[column] = early.mean_exit_layer
  return dataclasses.replace(
    table, losses=losses, mean_exit_layers=mean_exit_layers
  )


def _digest(full: DecodedDataset) -> str:
  """Returns a hash of what every loss is measured against."""
  content = _key([full.texts, full.references]).encode()
  return hashlib.sha256(content).hexdigest()[:16]


def _key(value: Any) -> str:
  """Returns a text that is equal for settings that are equal on disk."""
  return json.dumps(records.to_jsonable(value), sort_keys=True)


def _identity(table: records.LossTable) -> tuple[str, str, tuple[str, ...]]:
  """Returns what must be equal for columns to be taken over."""
  return _key(table.fingerprint), table.loss, table.example_ids

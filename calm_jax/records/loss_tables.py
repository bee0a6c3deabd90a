"""The loss table: what calibration reads, an .npz with a JSON header inside."""

import dataclasses
import json
import os
import zipfile
from typing import Any

import numpy as np

from calm_jax.records.json_files import (
  FORMAT_VERSION,
  from_jsonable,
  to_jsonable,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherLoss:
  """A further loss of a table whose losses are bounded together.

  Attributes:
    loss: its name.
    metric: the metric that it is measured by.
    loss_range: the smallest and the largest value it can have.
  """

  loss: str
  metric: str
  loss_range: tuple[float, ...]


# What a table says of settings besides losses, an array [J] each.
_PER_SETTING = ('mean_exit_layers', 'mean_layers_run', 'mean_encoder_layers')


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
      split, policy, metric, lengths, dtype).
    format_version: of this schema.
    mean_layers_run: float64 [J], layers run per decoded token by the ledger,
      those run later beside other tokens included; NaN where not known, which
      in tables of earlier versions is everywhere.
    others: K - 1 further losses of the same decodes, where K are bounded
      together.
    other_losses: float64 [K - 1, N, J], NaN where `losses` are.
    mean_encoder_layers: float64 [J], encoder layers per source; NaN where all
      run for all, and as above.
  """

  losses: np.ndarray
  settings: tuple[Any, ...]
  mean_exit_layers: np.ndarray
  example_ids: tuple[str, ...]
  loss: str
  fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
  format_version: int = FORMAT_VERSION
  mean_layers_run: np.ndarray | None = None
  others: tuple[OtherLoss, ...] = ()
  other_losses: np.ndarray | None = None
  mean_encoder_layers: np.ndarray | None = None

  def __post_init__(self):
    for name in ('mean_layers_run', 'mean_encoder_layers'):
      if getattr(self, name) is None:
        unknown = np.full(len(self.settings), np.nan)
        object.__setattr__(self, name, unknown)
    expected = (len(self.example_ids), len(self.settings))
    if self.losses.shape != expected:
      raise ValueError(
        f'losses have shape {self.losses.shape}, expected {expected}: one row '
        'per example id and one column per setting.'
      )
    if self.other_losses is None:
      unknown = np.full((len(self.others), *expected), np.nan)
      object.__setattr__(self, 'other_losses', unknown)
    if (shape := self.other_losses.shape) != (len(self.others), *expected):
      raise ValueError(
        f'other_losses have shape {shape}, expected '
        f'{(len(self.others), *expected)}.'
      )
    for name in _PER_SETTING:
      if (shape := getattr(self, name).shape) != expected[1:]:
        raise ValueError(f'{name} have shape {shape}, expected {expected[1:]}.')

  @property
  def num_examples(self) -> int:
    """N."""
    return len(self.example_ids)

  @property
  def computed(self) -> np.ndarray:
    """The columns that hold losses, bool [J]."""
    return ~np.isnan(self.losses).any(axis=0)

  def alone(self) -> tuple['LossTable', ...]:
    """Returns the tables of its K losses, each as if there were no other."""
    first = dataclasses.replace(self, others=(), other_losses=None)
    return first, *(
      dataclasses.replace(
        first,
        losses=losses,
        loss=other.loss,
        fingerprint={
          **self.fingerprint,
          **dataclasses.asdict(other),
          'loss_range': list(other.loss_range),
        },
      )
      for other, losses in zip(self.others, self.other_losses, strict=True)
    )


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
  more = {}
  if table.others:
    header['others'] = table.others
    more['other_losses'] = table.other_losses
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'wb') as file:
    np.savez(
      file,
      header=np.array(json.dumps(to_jsonable(header), allow_nan=False)),
      losses=table.losses,
      **{name: getattr(table, name) for name in _PER_SETTING},
      **more,
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
        mean_layers_run=arrays.get('mean_layers_run'),
        mean_encoder_layers=arrays.get('mean_encoder_layers'),
        example_ids=tuple(header['example_ids']),
        loss=header['loss'],
        fingerprint=header['fingerprint'],
        format_version=header['format_version'],
        others=from_jsonable(
          tuple[OtherLoss, ...], header.get('others', []), where='others'
        ),
        other_losses=arrays.get('other_losses'),
      )
  except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{os.fspath(path)} is not a complete loss table ({error}); delete it '
      'and build it again.'
    ) from None

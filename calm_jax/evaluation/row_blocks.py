"""The rows of a calibration by blocks, as `calibration.AnytimeSequence` asks.

A block of rows is decoded with the full model when the first setting gets to
it, and at a setting when that setting does. What testing does not come to is
never decoded.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import calibration, records
from calm_jax.calibration import running_tests
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation.calibrated_rows import MakeGrid, described
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.decoded_dataset import DecodedDataset, join_datasets
from calm_jax.evaluation.distinct_inputs import DistinctInputs
from calm_jax.evaluation.loss_table import digest_of, measured, result_line
from calm_jax.evaluation.reordered_batches import blocks_of


class RowBlocks:
  """Rows in the order of the bets, decoded block by block."""

  def __init__(
    self,
    inputs: DistinctInputs,
    make_grid: MakeGrid,
    meter: CostMeter,
    *,
    full_grid: bool = False,
    procedure: calibration.AnytimeSequence,
    p_value: calibration.PValue,
  ):
    """Decodes nothing yet.

    Args:
      inputs: the inputs, as many as there may be.
      make_grid: batches -> what decodes them.
      meter: notes what losses and tests cost.
      full_grid: refused.
      procedure: how many rows a block has.
      p_value: the order of the rows.

    Raises:
      ValueError: for a p-value that holds for a fixed number of rows alone,
        and for a full grid.
    """
    bettor = running_tests.running(p_value)
    if full_grid:
      raise ValueError(
        'full_grid (FULL_GRID) decodes every row at every setting, and '
        'AnytimeSequence as few as it can; leave out one of them'
      )
    self._inputs, self._meter = inputs, meter
    self._order = np.asarray(bettor.order(len(inputs.example_ids)))
    self._size = procedure.block
    self._ids = [inputs.example_ids[place] for place in self._order]
    self._grids = [
      make_grid(block)
      for block in blocks_of(inputs.batches, self._order, self._size)
    ]
    self._full: list[DecodedDataset] = []

  def begin(self, say: Callable[[str], None]) -> DecodedDataset:
    """Decodes the full model's outputs of the first block."""
    say(
      f'blocks of {self._size} inputs, of {len(self._ids)}, until it is decided'
    )
    return self._full_of(0)

  def fill(
    self,
    settings: Sequence[Any],
    losses: Sequence,
    statistics: Mapping[str, Any],
    *,
    path: str | os.PathLike | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
  ) -> records.LossTable:
    """Decodes one block after the other, at one setting after the other."""
    table = _GrowingTable(
      np.full((len(losses), len(self._ids), len(settings)), np.nan),
      dict(
        settings=tuple(settings),
        loss=losses[0].name,
        others=tuple(map(described, losses[1:])),
      ),
      self._ids,
      fingerprint or {},
    )
    functions = [self._meter.timed('scoring', loss) for loss in losses]
    next_block = self._meter.timed('statistics', calibration.next_block)
    while (block := next_block(list(table.losses), **statistics)) is not None:
      number = block.start // self._size
      full, setting = self._full_of(number), settings[block.column]
      early = self._grids[number].at(setting)
      table.put(block, measured(functions, early, full, setting), early)
      so_far = table.result(self.full())
      if path is not None:
        records.write_loss_table(path, so_far)
      if progress is not None:
        line = result_line(so_far, block.column)
        progress(f'{block.stop} of {len(self._ids)} inputs, {line}')
    return table.result(self.full())

  def certify(self, table, context, **statistics: Any) -> Certificate:
    """Returns the certificate."""
    certify = self._meter.timed('statistics', calibration.calibrate_in_blocks)
    return certify(
      [one.losses for one in table.alone()],
      table.settings,
      number=len(self._ids),
      context=context,
      **statistics,
    )

  def full(self) -> DecodedDataset:
    """Returns the full model's decode of the rows that were looked at."""
    return join_datasets(self._full)

  def places(self) -> np.ndarray:
    """Returns which row of the table each row is, -1 for none."""
    seen = self.full().num_examples
    of_input = np.full(len(self._ids), -1)
    of_input[self._order[:seen]] = np.arange(seen)
    return of_input[self._inputs.places]

  def note_traces(self) -> None:
    """Notes what traces cost."""
    for grid in self._grids[: len(self._full)]:
      grid.note_traces()

  def _full_of(self, number: int) -> DecodedDataset:
    """Returns the full model's decode of a block, whose turn it is."""
    if number == len(self._full):
      self._full.append(self._grids[number].full())
    return self._full[number]


@dataclasses.dataclass
class _GrowingTable:
  """Losses [K, N, J] that come in by blocks."""

  losses: np.ndarray
  about: dict[str, Any]
  example_ids: Sequence[str]
  fingerprint: Mapping[str, Any]
  early: list[list[DecodedDataset]] = dataclasses.field(default_factory=list)

  def put(
    self,
    block: running_tests.Block,
    found: Sequence[np.ndarray],
    early: DecodedDataset,
  ) -> None:
    """Puts the losses of a block, and what they were made of."""
    self.losses[:, block.start : block.stop, block.column] = found
    if not block.start:
      self.early.append([])
    self.early[block.column].append(early)

  def result(self, full: DecodedDataset) -> records.LossTable:
    """Returns the table of the rows that were looked at."""
    seen = full.num_examples
    layers = np.full((3, self.losses.shape[-1]), np.nan)
    for column, parts in enumerate(map(join_datasets, self.early)):
      layers[:, column] = (
        parts.mean_exit_layer,
        parts.mean_layers_run,
        parts.mean_encoder_layer,
      )
    return records.LossTable(
      losses=self.losses[0, :seen],
      other_losses=self.losses[1:, :seen],
      mean_exit_layers=layers[0],
      mean_layers_run=layers[1],
      mean_encoder_layers=layers[2],
      example_ids=tuple(self.example_ids[:seen]),
      fingerprint={**self.fingerprint, 'full': digest_of(full)},
      **self.about,
    )

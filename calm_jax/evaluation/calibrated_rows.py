"""The rows of a calibration, all decoded before anything is tested.

`row_blocks` has another way: rows by blocks, as testing asks for them.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from calm_jax import calibration, records
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.distinct_inputs import DistinctInputs
from calm_jax.evaluation.loss_table import build_loss_table
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.setting_grid import SettingGrid

MakeGrid = Callable[[Sequence[Batch]], SettingGrid]


class CalibratedRows(Protocol):
  """Decodes rows with the full model and at settings, as testing asks."""

  def begin(self, say: Callable[[str], None]) -> DecodedDataset:
    """Decodes the full model's outputs, all of them or the first ones."""
    ...

  def fill(
    self,
    settings: Sequence[Any],
    losses: Sequence[ConsistencyLoss],
    statistics: Mapping[str, Any],
    *,
    path: str | os.PathLike | None,
    fingerprint: Mapping[str, Any] | None,
    progress: Callable[[str], None] | None,
  ) -> records.LossTable:
    """Decodes what testing asks for, and returns the losses.

    Args:
      settings: J of them.
      losses: K of them.
      statistics: those of `CalibrationPlan`.
      path: as for `build_loss_table`, and so are the others.
      fingerprint: see there.
      progress: see there.
    """
    ...

  def certify(
    self,
    table: records.LossTable,
    context: Mapping[str, Any],
    **statistics: Any,
  ) -> Certificate:
    """Returns the certificate of a table that was filled."""
    ...

  def full(self) -> DecodedDataset:
    """Returns the full model's decode of the rows of the table."""
    ...

  def places(self) -> np.ndarray:
    """Returns of all rows given which of the table they are; -1 for none."""
    ...

  def note_traces(self) -> None:
    """Notes what traces cost; of several processes all must call it."""
    ...


class AllRows:
  """All of them at once: for procedures that test a column as a whole."""

  def __init__(
    self,
    inputs: DistinctInputs,
    make_grid: MakeGrid,
    meter: CostMeter,
    *,
    full_grid: bool = False,
  ):
    """Decodes nothing yet.

    Args:
      inputs: the inputs.
      make_grid: batches -> what decodes them.
      meter: notes what losses and tests cost.
      full_grid: decode what testing does not ask for as well.
    """
    self._full_grid = full_grid
    self._inputs, self._meter = inputs, meter
    self._grid = make_grid(inputs.batches)
    self._full: DecodedDataset | None = None

  def begin(self, say: Callable[[str], None]) -> DecodedDataset:
    """Decodes the full model's outputs."""
    say(f'full model on {len(self._inputs.example_ids)} inputs')
    self._full = self._grid.full()
    return self._full

  def fill(
    self, settings, losses, statistics, **options: Any
  ) -> records.LossTable:
    """Decodes one setting after the other."""
    loss, *others = losses
    timed = self._meter.timed
    return build_loss_table(
      self._grid.at,
      settings,
      loss=timed('scoring', loss),
      loss_name=loss.name,
      full=self.full(),
      others=[(described(other), timed('scoring', other)) for other in others],
      next_column=timed(
        'statistics', functools.partial(_next_column, statistics)
      ),
      full_grid=self._full_grid,
      **options,
    )

  def certify(self, table, context, **statistics: Any) -> Certificate:
    """Returns the certificate."""
    certify = self._meter.timed('statistics', calibration.calibrate_jointly)
    return certify(
      [one.losses for one in table.alone()],
      table.settings,
      context=context,
      **statistics,
    )

  def full(self) -> DecodedDataset:
    """Returns the full model's decode."""
    assert self._full is not None, 'begin comes first'
    return self._full

  def places(self) -> np.ndarray:
    """Returns which of the inputs each row is."""
    return self._inputs.places

  def note_traces(self) -> None:
    """Notes what traces cost."""
    self._grid.note_traces()


def described(loss: ConsistencyLoss) -> records.OtherLoss:
  """Returns what a table says of a loss that is not its first."""
  return records.OtherLoss(
    loss=loss.name, metric=loss.metric_name, loss_range=loss.loss_range
  )


def _next_column(
  statistics: Mapping[str, Any], losses: np.ndarray
) -> int | None:
  """Returns the column of [N, J] or [K, N, J] that is needed next."""
  tables = losses if losses.ndim == 3 else losses[None]
  return calibration.next_column_jointly(list(tables), **statistics)

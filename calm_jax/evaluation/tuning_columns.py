"""What half of the rows says of candidates, and tables of it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import decoding, quantisation, records
from calm_jax.evaluation.candidates import Candidate
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.losses import ConsistencyLoss


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """What one half of the rows says of a candidate.

  Attributes:
    candidate: the candidate.
    losses: [K, n]; None where nothing can be lost.
    decoded: its decode; None where nothing can be lost.
  """

  candidate: Candidate
  losses: np.ndarray | None = None
  decoded: DecodedDataset | None = None

  @property
  def seconds(self) -> float:
    """What decoding it took."""
    return 0.0 if self.decoded is None else float(self.decoded.seconds.sum())

  def record(self, timing: records.TimingRow) -> records.TunedCandidate:
    """Returns it as screened, for the result."""
    one = self.candidate
    found = {}
    if self.losses is not None:
      found = {
        'screening_means': tuple(self.losses.mean(axis=1).tolist()),
        # Plans leave layers out below an exit; what catches up is no exit's.
        'mean_exit_layer': min(
          self.decoded.mean_exit_layer, self.decoded.mean_layers_run
        ),
        'mean_encoder_layer': self.decoded.mean_encoder_layer,
      }
    return records.TunedCandidate(
      policy=one.name,
      setting=one.setting,
      described=decoding.describe(one.policy, {}),
      weights=quantisation.describe_weights(one.weights),
      lossless=one.lossless,
      milliseconds=timing.milliseconds_per_step,
      speed_up=timing.speed_up,
      depth_loop=timing.depth_loop,
      **found,
    )


def tables_of(columns: Sequence[Column]) -> list[np.ndarray]:
  """Returns the losses of columns as K tables [n, J]."""
  return list(np.stack([column.losses for column in columns], axis=-1))


def loss_table(
  columns: Sequence[Column],
  losses: Sequence[ConsistencyLoss],
  example_ids: Sequence[str],
  fingerprint: Mapping[str, Any],
) -> records.LossTable:
  """Returns columns as a loss table, whose settings name their policies."""
  columns = [column for column in columns if column.losses is not None]
  tables = (
    tables_of(columns)
    if columns
    else [np.empty((len(example_ids), 0)) for _ in losses]
  )
  first, *others = losses
  return records.LossTable(
    losses=tables[0],
    settings=tuple(
      {'policy': one.candidate.name, 'setting': one.candidate.setting}
      for one in columns
    ),
    mean_exit_layers=np.array([c.decoded.mean_exit_layer for c in columns]),
    mean_layers_run=np.array([c.decoded.mean_layers_run for c in columns]),
    mean_encoder_layers=np.array(
      [c.decoded.mean_encoder_layer for c in columns]
    ),
    example_ids=tuple(example_ids),
    loss=first.name,
    fingerprint={
      **fingerprint,
      'loss': first.name,
      'metric': first.metric_name,
      'loss_range': first.loss_range,
    },
    others=tuple(
      records.OtherLoss(
        loss=loss.name, metric=loss.metric_name, loss_range=loss.loss_range
      )
      for loss in others
    ),
    other_losses=np.stack(tables[1:]) if others else None,
  )


def digest(content: Any) -> str:
  """Returns a hash of anything that JSON can hold."""
  text = json.dumps(records.to_jsonable(content), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]

"""What a confidence measure loses at what depth, threshold by threshold."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class CertifiedPlace:
  """What a loss table certifies at one tolerance.

  Attributes:
    tolerance: what the expected loss must not exceed.
    place: which of the settings is certified, counted from 0; None if none is.
  """

  tolerance: float
  place: int | None


@dataclasses.dataclass(frozen=True)
class MeasureLine:
  """One way of leaving early, on the calibration inputs of one run.

  Attributes:
    run: the run, in words.
    name: the measure, and what else tells it from the others.
    kind: 'measure', 'full model' or 'oracle'; the latter two are one point.
    loss: the loss, such as 'textual', the distance to the full model's outputs.
    metric: the text metric that it is measured by.
    num_layers: L, the decoder layers.
    settings: J settings that were decoded, from conservative to aggressive.
    losses: J mean losses over the inputs.
    exit_layers: J mean layers that a token used, in 1..L.
    costs: J mean costs of a token by the ledger, in decoder layers; empty if
      nobody asked.
    certified: what is certified, tolerance by tolerance; of a table that was
      not decoded far enough to tell, nothing stands here.
  """

  run: str
  name: str
  kind: str
  loss: str
  metric: str
  num_layers: int
  settings: tuple[Any, ...]
  losses: tuple[float, ...]
  exit_layers: tuple[float, ...]
  costs: tuple[float, ...] = ()
  certified: tuple[CertifiedPlace, ...] = ()

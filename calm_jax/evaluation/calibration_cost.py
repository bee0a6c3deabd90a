"""What a calibration costs: its time over that of one full-model pass."""

import dataclasses
import functools
import time
from collections.abc import Callable

import numpy as np

from calm_jax import records
from calm_jax.evaluation.compile_clock import compile_seconds
from calm_jax.evaluation.decoded_dataset import DecodedDataset


class CostMeter:
  """Adds up where the time of a calibration goes, compilation left out."""

  def __init__(self):
    compile_seconds()  # from here on it counts
    self._full: list[DecodedDataset] = []
    self._settings: list[records.SettingCost] = []
    self._seconds = {'traces': 0.0, 'scoring': 0.0, 'statistics': 0.0}

  def note_full(self, decoded: DecodedDataset) -> None:
    """Notes the full model's decode, or that of a block of rows."""
    self._full.append(decoded)

  def note(self, setting, decoded: DecodedDataset) -> None:
    """Notes the decode of one setting; those of its blocks come together."""
    cost = records.SettingCost(
      setting=setting,
      num_decoded=int(np.count_nonzero(decoded.seconds)),
      seconds=float(decoded.seconds.sum()),
      num_inputs=decoded.num_examples,
    )
    if self._settings and self._settings[-1].setting == setting:
      before = self._settings.pop()
      cost = dataclasses.replace(
        cost,
        num_decoded=before.num_decoded + cost.num_decoded,
        seconds=before.seconds + cost.seconds,
        num_inputs=(before.num_inputs or 0) + decoded.num_examples,
      )
    self._settings.append(cost)

  def note_traces(self, seconds: float) -> None:
    """Notes what looking at every exit of the full outputs took."""
    self._seconds['traces'] += seconds

  def timed(self, name: str, function: Callable) -> Callable:
    """Returns the function with its time counted as 'scoring' or so."""

    @functools.wraps(function, updated=())
    def call(*arguments, **keywords):
      start = time.perf_counter()
      try:
        return function(*arguments, **keywords)
      finally:
        self._seconds[name] += time.perf_counter() - start

    return call

  def result(self) -> records.CalibrationCost:
    """Returns the sums."""
    return records.CalibrationCost(
      num_examples=sum(part.num_examples for part in self._full),
      full_seconds=sum(float(part.seconds.sum()) for part in self._full),
      trace_seconds=self._seconds['traces'],
      settings=tuple(self._settings),
      scoring_seconds=self._seconds['scoring'],
      statistics_seconds=self._seconds['statistics'],
      compile_seconds=compile_seconds(),
    )

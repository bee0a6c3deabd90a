"""What a calibration costs: its time over that of one full-model pass."""

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
    self._full: DecodedDataset | None = None
    self._settings: list[records.SettingCost] = []
    self._seconds = {'traces': 0.0, 'scoring': 0.0, 'statistics': 0.0}

  def note_full(self, decoded: DecodedDataset) -> None:
    """Notes the full model's decode."""
    self._full = decoded

  def note(self, setting, decoded: DecodedDataset) -> None:
    """Notes the decode of one setting."""
    self._settings.append(
      records.SettingCost(
        setting=setting,
        num_decoded=int(np.count_nonzero(decoded.seconds)),
        seconds=float(decoded.seconds.sum()),
      )
    )

  def note_traces(self, seconds: float) -> None:
    """Notes what looking at every exit of the full outputs took."""
    self._seconds['traces'] = seconds

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
      num_examples=self._full.num_examples,
      full_seconds=float(self._full.seconds.sum()),
      trace_seconds=self._seconds['traces'],
      settings=tuple(self._settings),
      scoring_seconds=self._seconds['scoring'],
      statistics_seconds=self._seconds['statistics'],
      compile_seconds=compile_seconds(),
    )

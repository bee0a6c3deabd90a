"""The files of one run: its log and its checkpoints.

`RunDirectory` writes them, and on a restart gives back the training state and
drops log rows of steps that are about to be taken again.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from calm_jax import records
from calm_jax.checkpoints import directories, native
from calm_jax.model import T5Config
from calm_jax.training.step import TrainState

LOG_NAME = 'train_log.jsonl'


@dataclasses.dataclass(frozen=True)
class Remembered:
  """What the loop knows besides the training state; saved with checkpoints.

  Attributes:
    seconds: wall-clock time so far.
    best_step: step of the best evaluation.
    best_value: the metric there.
    stale_evaluations: evaluations since then.
    evaluated_step: step of the last evaluation.
  """

  seconds: float = 0.0
  best_step: int | None = None
  best_value: float | None = None
  stale_evaluations: int = 0
  evaluated_step: int | None = None


class RunDirectory:
  """A directory that holds one run."""

  def __init__(
    self, path: str | os.PathLike, config: T5Config, *, context, max_to_keep
  ):
    """Makes the directory; `context` and `max_to_keep` as for `train`."""
    self.path = os.path.abspath(os.fspath(path))
    self._config = config
    self._context = dict(context or {})
    self._max_to_keep = max_to_keep
    os.makedirs(self.path, exist_ok=True)

  @property
  def latest(self) -> str | None:
    """The path of the latest complete checkpoint, or None."""
    step = directories.latest_step(self.path)
    return (
      None if step is None else directories.checkpoint_path(self.path, step)
    )

  def resume(self, state: TrainState) -> tuple[TrainState, Remembered]:
    """Returns what the latest checkpoint holds; without one, `state` itself.

    Args:
      state: of the right structure and shapes.

    Raises:
      ValueError: if the checkpoint belongs to a run with another model,
        vocabulary or optimizer, or is damaged.
    """
    if self.latest is None:
      self._drop_log_after(0)
      return state, Remembered()
    metadata = native.read_metadata(self.latest)
    native.check_same_run(self.latest, metadata, self._config, self._context)
    params, rest = native.restore_train_state(
      self.latest, state.params, _besides_params(state)
    )
    self._drop_log_after(metadata['step'])
    state = TrainState(
      step=rest['step'],
      params=params,
      opt_state=rest['optimizer'],
      rng=jax.random.wrap_key_data(rest['rng']),
    )
    return state, Remembered(**metadata['progress'])

  def save(self, state: TrainState, step: int, remembered: Remembered) -> None:
    """Saves a checkpoint from which the run can go on."""
    native.save(
      self.path,
      step,
      params=state.params,
      config=self._config,
      train_state=_besides_params(state),
      context=self._context,
      progress=dataclasses.asdict(remembered),
      max_to_keep=self._max_to_keep,
    )

  def save_best(
    self, state: TrainState, step: int, metrics: Mapping[str, float]
  ) -> None:
    """Saves the parameters as the best ones, in place of the former best."""
    native.save(
      os.path.join(self.path, directories.BEST),
      step,
      params=state.params,
      config=self._config,
      context=self._context,
      progress=metrics,
      max_to_keep=1,
    )

  def append(self, row: Mapping[str, Any]) -> None:
    """Appends a row to the log."""
    if jax.process_index() == 0:
      records.append_jsonl(os.path.join(self.path, LOG_NAME), row)

  def _drop_log_after(self, step: int) -> None:
    path = os.path.join(self.path, LOG_NAME)
    if not os.path.exists(path):
      return
    rows = []
    try:
      for row in records.read_jsonl(path):
        if row['step'] <= step:
          rows.append(row)
    except ValueError:
      # A kill can cut the last line.
      pass
    records.write_jsonl(path, rows)


def _besides_params(state: TrainState) -> dict[str, Any]:
  return {
    'step': state.step,
    'rng': jax.random.key_data(state.rng),
    'optimizer': state.opt_state,
  }

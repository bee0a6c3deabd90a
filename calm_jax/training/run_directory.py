"""The files of one run: its log, its parameter table and its checkpoints.

`RunDirectory` writes them, and on a restart gives back the training state and
drops log rows of steps that are about to be taken again. With several processes
the first one alone writes text files, and all of them write checkpoints.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from calm_jax import records
from calm_jax.checkpoints import directories, native
from calm_jax.model import T5Config
from calm_jax.processes import collectives, file_locks
from calm_jax.tokenizer import Tokenizer, keep_vocabulary
from calm_jax.training import seen_rows
from calm_jax.training.remembered import Remembered
from calm_jax.training.state import TrainState

LOG_NAME = 'train_log.jsonl'
PARAMETERS_NAME = 'parameters.txt'

# Called with every row that goes to the log.
RowLogger = Callable[[Mapping[str, Any]], None]


class RunDirectory:
  """A directory that holds one run."""

  def __init__(
    self,
    path: str | os.PathLike,
    config: T5Config,
    *,
    context: Mapping[str, Any] | None,
    max_to_keep: int,
    loggers: Sequence[RowLogger] = (),
  ):
    """Makes the directory; the arguments are those of `train`."""
    if '://' in os.fspath(path):
      raise ValueError(
        f'{os.fspath(path)} is no local path, and runs are written locally: '
        'give a folder, such as one that a bucket is mounted at'
      )
    self.path = os.path.abspath(os.path.expanduser(path))
    self._config = config
    self._context = dict(context or {})
    self._max_to_keep = max_to_keep
    self._loggers = tuple(loggers)
    self._writer = native.CheckpointWriter()
    os.makedirs(self.path, exist_ok=True)

  @property
  def latest(self) -> str | None:
    """The path of the latest complete checkpoint, or None."""
    step = directories.latest_step(self.path)
    return (
      None if step is None else directories.checkpoint_path(self.path, step)
    )

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other jobs from writing here; raises ValueError if one does.

    Two of them would remove what the other one has half written, and replace
    its best checkpoint.
    """
    log = os.path.join(self.path, LOG_NAME)
    with file_locks.held_by_job(log, 'MODEL_DIR'):
      yield

  def resume(self, state: TrainState) -> tuple[TrainState, Remembered]:
    """Returns what the latest checkpoint holds; without one, `state` itself.

    What killed runs left half written is removed.

    Args:
      state: of the right structure; arrays, or ShapeDtypeStructs with the
        shardings to restore to.

    Raises:
      ValueError: if the checkpoint belongs to a run with another model,
        vocabulary or optimizer, or is damaged.
    """
    if collectives.is_main_process():
      directories.clean_up(self.path)
    metadata = check_same_run(self.path, self._config, self._context)
    if metadata is None:
      self._drop_log_after(0)
      return state, Remembered()
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

  def save(
    self,
    state: TrainState,
    step: int,
    remembered: Remembered,
    *,
    wait: bool = True,
  ) -> None:
    """Saves a checkpoint from which the run can go on.

    Args:
      state: what to save; may be donated afterwards.
      step: steps taken.
      remembered: what the loop knows besides.
      wait: whether to return only once it is committed; see `poll` and `wait`.

    Raises:
      SaveError: if this or an earlier one could not be written.
    """
    self._writer.save(
      self.path,
      step,
      params=state.params,
      config=self._config,
      train_state=_besides_params(state),
      context=self._context,
      progress=dataclasses.asdict(remembered),
      max_to_keep=self._max_to_keep,
    )
    if wait:
      self.wait()

  def save_best(
    self, state: TrainState, step: int, metrics: Mapping[str, float]
  ) -> None:
    """Starts to save the parameters, in place of the former best ones.

    A later `save` is committed after it, so that a checkpoint never remembers
    a best one that a kill prevented.

    Raises:
      SaveError: if an earlier checkpoint could not be written.
    """
    self._writer.save(
      os.path.join(self.path, directories.BEST),
      step,
      params=state.params,
      config=self._config,
      context=self._context,
      progress=metrics,
      max_to_keep=1,
    )

  def poll(self) -> None:
    """Raises SaveError if the write under way has failed; does not wait."""
    self._writer.poll()

  def wait(self) -> None:
    """Waits until what was saved is committed; raises SaveError on failure."""
    self._writer.wait()

  def write_parameters(self, table: str) -> None:
    """Writes the table of parameters."""
    if collectives.is_main_process():
      records.write_text(os.path.join(self.path, PARAMETERS_NAME), table)

  def keep_vocabulary(self, tokenizer: Tokenizer | None) -> None:
    """Copies the vocabulary's file beside the checkpoints, if there is one."""
    if tokenizer is not None and collectives.is_main_process():
      keep_vocabulary(tokenizer, self.path)

  def add_seen_rows(
    self, rows: seen_rows.Rows | None, *, resumed: bool, inside: bool
  ) -> None:
    """Writes which inputs the run sees; see `seen_rows.add`."""
    if rows is not None and collectives.is_main_process():
      seen_rows.add(self.path, rows, resumed=resumed, inside=inside)

  def append(self, row: Mapping[str, Any]) -> None:
    """Appends a row to the log, and hands it to the loggers."""
    if not collectives.is_main_process():
      return
    records.append_jsonl(os.path.join(self.path, LOG_NAME), row)
    for logger in self._loggers:
      logger(row)

  def _drop_log_after(self, step: int) -> None:
    path = os.path.join(self.path, LOG_NAME)
    if not collectives.is_main_process() or not os.path.exists(path):
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


def check_same_run(
  path: str | os.PathLike, config: T5Config, context: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Checks that a run may go on in a directory, and touches nothing.

  Returns:
    The metadata of its latest checkpoint; None if there is none.

  Raises:
    ValueError: if the checkpoint is of another model, vocabulary or context.
  """
  step = directories.latest_step(path)
  if step is None:
    return None
  latest = directories.checkpoint_path(path, step)
  metadata = native.read_metadata(latest)
  native.check_same_run(latest, metadata, config, context)
  return metadata


def _besides_params(state: TrainState) -> dict[str, Any]:
  return {
    'step': state.step,
    'rng': _key_data(state.rng),
    'optimizer': state.opt_state,
  }


def _key_data(rng: Any) -> Any:
  """Returns the numbers of a key, or their shape for the shape of a key."""
  if not isinstance(rng, jax.ShapeDtypeStruct):
    return jax.random.key_data(rng)
  data = jax.eval_shape(jax.random.key_data, rng)
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=rng.sharding)

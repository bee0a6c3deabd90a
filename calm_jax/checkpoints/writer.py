"""Writing checkpoints while training goes on.

`CheckpointWriter.save` copies the arrays to the host and returns; a thread of
Orbax writes them to a temporary directory, whose renaming is the commit. One
checkpoint is under way at a time, so that they are committed in the order in
which they were saved, and older ones go only once the new one is there.
"""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from calm_jax.array_types import Params, PyTree
from calm_jax.checkpoints import directories, named_trees
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.orbax_scope import quiet_orbax
from calm_jax.model.config import T5Config


class SaveError(RuntimeError):
  """A checkpoint could not be written; those written before are untouched."""


@dataclasses.dataclass(frozen=True)
class _UnderWay:
  """A checkpoint that is being written.

  Attributes:
    path: where it will lie.
    max_to_keep: as for `CheckpointWriter.save`.
    checkpointer: Orbax's object, one per checkpoint: none is used again after
      a failure.
    cleanup: leaves the context that Orbax is called in.
  """

  path: str
  max_to_keep: int | None
  checkpointer: ocp.AsyncCheckpointer
  cleanup: contextlib.ExitStack


class CheckpointWriter:
  """Writes checkpoints in the background; a context that waits for the last.

  With several processes, all of them call every method.
  """

  def __init__(self):
    self._under_way: _UnderWay | None = None

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if error is None:
      self.wait()
      return
    # What went wrong first is what the caller hears of.
    with contextlib.suppress(SaveError):
      self.wait()

  def save(
    self,
    directory: str | os.PathLike,
    step: int,
    *,
    params: Params,
    config: T5Config,
    train_state: Mapping[str, PyTree] | None = None,
    context: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
    max_to_keep: int | None = None,
  ) -> str:
    """Starts to write `checkpoint_<step>` and returns its path.

    First waits for the one before. The arrays may be donated or changed as soon
    as this returns.

    Args:
      directory: the run directory; made if it is missing.
      step: training steps taken.
      params: the parameter tree.
      config: the model's configuration.
      train_state: what training needs besides, a dict of trees (step, rng,
        optimizer); None saves parameters only.
      context: what the parameters depend on, JSON values; by convention
        'vocabulary_fingerprint' and 'vocabulary_file'.
      progress: what the training loop must remember, JSON values.
      max_to_keep: keep this one and the max_to_keep - 1 latest others; all if
        None.

    Raises:
      ValueError: if `max_to_keep` is below 1.
      SaveError: if the one before, or this one, could not be written.
    """
    if max_to_keep is not None and max_to_keep < 1:
      raise ValueError(f'max_to_keep must be at least 1, got {max_to_keep!r}')
    self.wait()
    metadata = _describe(step, params, config, context, progress)
    tree = {'target': params}
    if train_state:
      tree['state'] = named_trees.as_dicts(train_state)
    path = directories.checkpoint_path(directory, step)
    cleanup = contextlib.ExitStack()
    cleanup.enter_context(quiet_orbax())
    self._under_way = _UnderWay(
      path,
      max_to_keep,
      # Threads that wait for a directory made in the background wait for
      # minutes when it cannot be made.
      ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(),
        async_options=ocp.options.AsyncOptions(
          create_directories_asynchronously=False
        ),
      ),
      cleanup,
    )
    try:
      # All processes meet inside before any of them looks at the path.
      if jax.process_index() == 0:
        directories.set_aside(path)
      self._under_way.checkpointer.save(
        path,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          metadata=ocp.args.JsonSave(metadata),
        ),
      )
    except Exception as error:
      self._give_up(error)
    return path

  def poll(self) -> None:
    """Learns without waiting whether the write has ended; costs microseconds.

    Raises:
      SaveError: if it has failed.
    """
    if self._under_way is None:
      return
    try:
      self._under_way.checkpointer.check_for_errors()
    except Exception as error:
      self._give_up(error)
    if directories.is_complete(self._under_way.path):
      self.wait()

  def wait(self) -> None:
    """Waits until the checkpoint is committed, then removes older ones.

    Raises:
      SaveError: if it could not be written.
    """
    if self._under_way is None:
      return
    try:
      self._under_way.checkpointer.wait_until_finished()
    except Exception as error:
      self._give_up(error)
    done, self._under_way = self._under_way, None
    done.checkpointer.close()
    done.cleanup.close()
    if jax.process_index() == 0:
      directories.keep_latest(done.path, done.max_to_keep)

  def _give_up(self, error: Exception) -> NoReturn:
    failed, self._under_way = self._under_way, None
    with contextlib.suppress(Exception):
      failed.checkpointer.close()
    failed.cleanup.close()
    if jax.process_index() == 0:
      directories.undo_save(failed.path)
    kept = directories.complete_beside(failed.path)
    latest = 'no other checkpoint lies beside it'
    if kept:
      latest = f'the last good checkpoint is {kept[0]}'
    raise SaveError(
      f'the checkpoint {failed.path} could not be written: {_cause(error)}. '
      f'Nothing of it was kept; {latest}. Once the cause is gone, the same '
      'command goes on from there.'
    ) from error


def save(directory: str | os.PathLike, step: int, **arguments) -> str:
  """Writes a checkpoint, whole or not at all, and returns its path.

  Args:
    directory: the run directory.
    step: training steps taken.
    **arguments: as for `CheckpointWriter.save`.
  """
  with CheckpointWriter() as writer:
    return writer.save(directory, step, **arguments)


def save_state(path: str | os.PathLike, tree: PyTree) -> None:
  """Writes one checkpoint of arrays without our description, as T5X has it.

  Args:
    path: the directory checkpoint_<step> to make.
    tree: {'target': parameters, 'state': {...}}, dicts of NumPy arrays.
  """
  with (
    quiet_orbax(),
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
  ):
    checkpointer.save(
      os.path.abspath(os.fspath(path)),
      args=ocp.args.Composite(state=ocp.args.StandardSave(tree)),
    )


def _describe(step, params, config, context, progress) -> dict[str, Any]:
  return {
    'format': 'calm_jax',
    'format_version': 1,
    'step': int(step),
    'model_config': dataclasses.asdict(config),
    'context': dict(context or {}),
    'progress': dict(progress or {}),
    'parameter_fingerprint': parameter_fingerprint(params),
    'versions': {
      'jax': jax.__version__,
      'orbax': ocp.__version__,
      'numpy': np.__version__,
    },
    'created': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }


def _cause(error: BaseException) -> str:
  """Returns what went wrong at the bottom of a chain of errors, on one line."""
  chain = [error]
  while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
    if cause in chain:
      break
    chain.append(cause)
  for one in chain:
    if 'No space left on device' in str(one):
      return 'the disk is full (No space left on device); free some space'
  lines = str(chain[-1]).strip().splitlines() or ['']
  return f'{type(chain[-1]).__name__}: {lines[0][:300]}'.rstrip(': ')

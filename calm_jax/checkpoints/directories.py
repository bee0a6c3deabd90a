"""Where checkpoints lie in a run directory, and which of them are whole.

`<run>/checkpoint_<step>` are those of the run, and the best one lies in
`<run>/best/`. A checkpoint counts once Orbax has committed it; one that a kill
left half written is passed over.
"""

import contextlib
import json
import os
import re
import shutil

from calm_jax.checkpoints import foreign_folders

_DIRECTORY = re.compile(r'checkpoint_(\d+)$')
# Endings of directories that are being written, removed or replaced.
_WRITING, _REMOVED, _REPLACED = '.orbax-checkpoint-tmp', '.removed', '.replaced'
BEST = 'best'
# Where parameters in 8 bits lie in a run directory.
INT8 = 'int8'


def checkpoint_path(directory: str | os.PathLike, step: int) -> str:
  """Returns where the checkpoint of a step lies; Orbax needs it absolute."""
  return os.path.join(
    os.path.abspath(os.path.expanduser(directory)), f'checkpoint_{int(step)}'
  )


def is_complete(path: str | os.PathLike) -> bool:
  """Whether a directory is a checkpoint that was committed."""
  path = os.fspath(path)
  try:
    with open(os.path.join(path, '_CHECKPOINT_METADATA'), 'rb') as file:
      committed = json.load(file).get('commit_timestamp_nsecs')
  except (OSError, ValueError):
    return False
  needed = (('metadata', 'metadata'), ('state', '_METADATA'))
  return bool(committed) and all(
    os.path.exists(os.path.join(path, *names)) for names in needed
  )


def steps(directory: str | os.PathLike) -> list[int]:
  """Returns the steps of the complete checkpoints in a directory, ascending."""
  directory = os.path.expanduser(directory)
  if not os.path.isdir(directory):
    return []
  found = (_DIRECTORY.match(name) for name in os.listdir(directory))
  return sorted(
    int(match[1])
    for match in found
    if match and is_complete(os.path.join(directory, match[0]))
  )


def latest_step(directory: str | os.PathLike) -> int | None:
  """Returns the step of the latest complete checkpoint, or None."""
  return max(steps(directory), default=None)


def best_step(directory: str | os.PathLike) -> int | None:
  """Returns the step of the best checkpoint of a run directory, or None."""
  return latest_step(os.path.join(os.fspath(directory), BEST))


def find_checkpoint(path: str | os.PathLike) -> str:
  """Returns the checkpoint directory that a path means; see `load_params`.

  Raises:
    FileNotFoundError: if there is none, saying what is there instead.
    ValueError: if the path is a checkpoint that was never completed, or a URL.
  """
  if '://' in os.fspath(path):
    raise ValueError(
      f'{os.fspath(path)} is no local path, and run directories are read '
      'locally: copy it, or read its parameters with checkpoints.load (on the '
      'command line: name a vocabulary too)'
    )
  path = os.path.abspath(os.path.expanduser(path))
  if is_complete(path):
    return path
  best, latest = best_step(path), latest_step(path)
  if best is not None:
    return checkpoint_path(os.path.join(path, BEST), best)
  if latest is not None:
    return checkpoint_path(path, latest)
  if why := _foreign(path):
    raise FileNotFoundError(why)
  if _DIRECTORY.match(os.path.basename(path)) and os.path.isdir(path):
    raise ValueError(damage_message(path, 'its writing was never completed'))
  raise FileNotFoundError(f'no checkpoint at {path}: {_what_is_there(path)}')


def _foreign(path: str) -> str | None:
  """Returns what to do with a folder of somebody else's, None if it is none."""
  names = _names(path)
  found = foreign_folders.unreadable(path, names)
  for inside in ('', *filter(_DIRECTORY.match, map(_plain, names))):
    if found is None:
      found = foreign_folders.needs_vocabulary(
        path, _names(os.path.join(path, inside))
      )
  return found


def _names(path: str) -> list[str]:
  """Returns what is in a folder, names of folders with a slash."""
  if not os.path.isdir(path):
    return []
  return sorted(
    entry.name + ('/' if entry.is_dir() else '') for entry in os.scandir(path)
  )


def _plain(name: str) -> str:
  return name.rstrip('/')


def _what_is_there(path: str) -> str:
  if os.path.isdir(path):
    names = sorted(os.listdir(path))[:20]
    return f'the directory holds {names}, and no complete checkpoint_<step>'
  parent = os.path.dirname(path)
  while not os.path.isdir(parent):
    parent = os.path.dirname(parent)
  return f'no such directory; {parent} holds {sorted(os.listdir(parent))[:20]}'


def run_of(path: str | os.PathLike) -> str:
  """Returns the run directory of a checkpoint, its best one or another."""
  run = os.path.dirname(os.fspath(path))
  return os.path.dirname(run) if os.path.basename(run) == BEST else run


def complete_beside(path: str | os.PathLike) -> list[str]:
  """Returns the complete checkpoints of the same run, the latest first.

  Args:
    path: a checkpoint, of the run or its best one; not among those returned.
  """
  path = os.fspath(path)
  run = run_of(path)
  return [
    checkpoint_path(directory, step)
    for directory in (run, os.path.join(run, BEST))
    for step in reversed(steps(directory))
    if checkpoint_path(directory, step) != path
  ]


def damage_message(path: str | os.PathLike, why: str) -> str:
  """Returns a message that names the checkpoint and complete others."""
  others = complete_beside(path)
  remedy = (
    f'complete checkpoints beside it: {", ".join(others)}; use one of them, or '
    'delete the damaged directory to go on from the latest'
    if others
    else 'no other complete checkpoint lies beside it'
  )
  return f'the checkpoint {path} is damaged or incomplete ({why}); {remedy}'


# Whatever moment a kill chooses, a directory named like a checkpoint that looks
# complete is complete: renaming comes before removing.


def remove(path: str | os.PathLike) -> None:
  """Removes a checkpoint."""
  removed = f'{os.fspath(path)}{_REMOVED}'
  shutil.rmtree(removed, ignore_errors=True)
  os.rename(path, removed)
  shutil.rmtree(removed, ignore_errors=True)


def keep_latest(path: str | os.PathLike, max_to_keep: int | None) -> None:
  """Removes what a checkpoint that is now complete replaces.

  Args:
    path: the new checkpoint; it stays, whatever its number.
    max_to_keep: how many stay, the new one among them; None for all.
  """
  path = os.fspath(path)
  shutil.rmtree(f'{path}{_REPLACED}', ignore_errors=True)
  if max_to_keep is None:
    return
  directory = os.path.dirname(path)
  others = [checkpoint_path(directory, step) for step in steps(directory)]
  others = [other for other in others if other != path]
  for old in others[: max(len(others) - (max_to_keep - 1), 0)]:
    remove(old)


def set_aside(path: str | os.PathLike) -> None:
  """Makes room for a new checkpoint of the same step, keeping the old one."""
  path = os.fspath(path)
  if is_complete(path):
    shutil.rmtree(f'{path}{_REPLACED}', ignore_errors=True)
    os.rename(path, f'{path}{_REPLACED}')
  elif os.path.isdir(path):
    remove(path)


def undo_save(path: str | os.PathLike) -> None:
  """Removes what a failed save left, and brings back what was set aside."""
  directory, name = os.path.split(os.fspath(path))
  for other in os.listdir(directory) if os.path.isdir(directory) else ():
    if other.startswith(f'{name}{_WRITING}'):
      shutil.rmtree(os.path.join(directory, other), ignore_errors=True)
  if os.path.isdir(f'{path}{_REPLACED}') and not is_complete(path):
    with contextlib.suppress(FileNotFoundError):
      remove(path)
    os.rename(f'{path}{_REPLACED}', path)


def clean_up(directory: str | os.PathLike) -> None:
  """Removes what killed runs left half written, here and in `best/`."""
  directory = os.path.abspath(os.fspath(directory))
  for folder in (directory, os.path.join(directory, BEST)):
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
      checkpoint, dot, ending = name.partition('.')
      if not _DIRECTORY.match(checkpoint) or not dot:
        continue
      path = os.path.join(folder, checkpoint)
      if f'.{ending}' == _REPLACED or f'.{ending}'.startswith(_WRITING):
        undo_save(path)
      if f'.{ending}' in (_REMOVED, _REPLACED):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)

"""Where checkpoints lie in a run directory, and which of them are whole.

`<run>/checkpoint_<step>` are those of the run, and the best one lies in
`<run>/best/`. A checkpoint counts once Orbax has committed it; one that a kill
left half written is passed over.
"""

import json
import os
import re

_DIRECTORY = re.compile(r'checkpoint_(\d+)$')
BEST = 'best'


def checkpoint_path(directory: str | os.PathLike, step: int) -> str:
  """Returns where the checkpoint of a step lies; Orbax needs it absolute."""
  return os.path.join(
    os.path.abspath(os.fspath(directory)), f'checkpoint_{int(step)}'
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
  directory = os.fspath(directory)
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
    ValueError: if the path is a checkpoint that was never completed.
  """
  path = os.path.abspath(os.fspath(path))
  if is_complete(path):
    return path
  if _DIRECTORY.match(os.path.basename(path)) and os.path.isdir(path):
    raise ValueError(damage_message(path, 'its writing was never completed'))
  best = best_step(path)
  if best is not None:
    return checkpoint_path(os.path.join(path, BEST), best)
  latest = latest_step(path)
  if latest is not None:
    return checkpoint_path(path, latest)
  raise FileNotFoundError(f'no checkpoint at {path}: {_what_is_there(path)}')


def _what_is_there(path: str) -> str:
  if os.path.isdir(path):
    names = sorted(os.listdir(path))[:20]
    return f'the directory holds {names}, and no complete checkpoint_<step>'
  parent = os.path.dirname(path)
  while not os.path.isdir(parent):
    parent = os.path.dirname(parent)
  return f'no such directory; {parent} holds {sorted(os.listdir(parent))[:20]}'


def damage_message(path: str, why: str) -> str:
  """Returns a message that names the checkpoint and complete older ones."""
  path = os.fspath(path)
  run = os.path.dirname(path)
  others = [
    checkpoint_path(directory, step)
    for directory in (run, os.path.join(run, BEST))
    for step in steps(directory)
    if checkpoint_path(directory, step) != path
  ]
  remedy = (
    f'complete checkpoints beside it: {", ".join(others)}; use one of them, or '
    'delete the damaged directory to go on from the latest'
    if others
    else 'no other complete checkpoint lies beside it'
  )
  return f'the checkpoint {path} is damaged or incomplete ({why}); {remedy}'

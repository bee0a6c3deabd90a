"""What the shapes of T5X's parameters do not tell, and where it is said.

T5X saves no configuration. What this library writes for it has a description
beside the parameters, which T5X reads past; a run of T5X keeps its config.gin
in the model directory. What neither says is taken for T5's, and told.
"""

import dataclasses
import json
import os
import re
from typing import Any

from calm_jax.checkpoints.storage import Folder
from calm_jax.model.config import T5Config

# Beside `checkpoint` or `state`.
DESCRIPTION = 'calm_jax_config.json'
# How the note of what was assumed begins.
ASSUMED = 'T5X saves no configuration'
_GIN = 'config.gin'
_ACTIVATIONS = re.compile(r'^[\w./]*\.mlp_activations\s*=\s*\(([^)]*)\)', re.M)
_FIELDS = ('mlp_activations', 'relative_max_distance')


def describe(path: str | os.PathLike, config: T5Config) -> None:
  """Writes what shapes do not tell into an existing folder."""
  fields = {name: getattr(config, name) for name in _FIELDS}
  with open(os.path.join(path, DESCRIPTION), 'w', encoding='utf-8') as file:
    json.dump(fields, file)


def settle(
  config: T5Config, folder: Folder | None
) -> tuple[T5Config, tuple[str, ...]]:
  """Returns a configuration that shapes told, with the rest of it, and notes.

  Args:
    config: what shapes tell, T5's where they do not.
    folder: checkpoint_<step>; None if nothing lies beside the parameters.

  Raises:
    ValueError: if a description is damaged, or cannot be of these parameters.
  """
  where, fields = _read(folder) if folder else ('', {})
  try:
    changed = dataclasses.replace(config, **fields)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{where} cannot be: {error}; correct it') from error
  if len(changed.mlp_activations) != len(config.mlp_activations):
    raise ValueError(
      f'{where} says mlp_activations {changed.mlp_activations}, and the '
      f'parameters have {len(config.mlp_activations)}; one of them is of '
      'another model'
    )
  notes = []
  if where.endswith(_GIN):
    kind = '-'.join(changed.mlp_activations)
    notes.append(f'{where} says that the feed-forward is {kind}.')
  assumed = [
    text
    for name, text in (
      ('mlp_activations', f'feed-forward {"-".join(config.mlp_activations)}'),
      (
        'relative_max_distance',
        f'relative positions up to {config.relative_max_distance}',
      ),
    )
    if name not in fields
  ]
  if assumed:
    notes.append(
      f"{ASSUMED}: {' and '.join(assumed)} were assumed, as T5's are; "
      'checkpoints.load(path, config) takes others (convert: --activations, '
      '--relative_max_distance).'
    )
  return changed, tuple(notes)


def _read(folder: Folder) -> tuple[str, dict[str, Any]]:
  """Returns where something is said, and what; nothing if nowhere."""
  where = f'{folder.path}/{DESCRIPTION}'
  try:
    fields = json.loads(folder.read(DESCRIPTION))
  except FileNotFoundError:
    return _read_gin(folder)
  except (RecursionError, ValueError) as error:
    raise ValueError(f'{where} is damaged ({error}); get it again') from error
  if not isinstance(fields, dict) or fields.keys() != set(_FIELDS):
    raise ValueError(f'{where} should say {list(_FIELDS)}; get it again')
  return where, fields


def _read_gin(folder: Folder) -> tuple[str, dict[str, Any]]:
  """Returns what the run of T5X that left the checkpoint was configured to."""
  above = Folder.open(folder.path.rpartition('/')[0] or '/')
  try:
    text = above.read(_GIN).decode('utf-8', 'replace')
  except (FileNotFoundError, ValueError):
    return '', {}
  found = {
    tuple(re.findall(r'[\w-]+', match[1]))
    for match in _ACTIVATIONS.finditer(text)
  }
  if len(found) != 1:
    return '', {}
  # flax calls it both ways.
  activations = ['silu' if name == 'swish' else name for name in found.pop()]
  return f'{above.path}/{_GIN}', {'mlp_activations': activations}

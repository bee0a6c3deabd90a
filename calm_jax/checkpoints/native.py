"""Checkpoints in this project's own form: Orbax arrays and a JSON description.

A run directory holds `checkpoint_<step>/{state, metadata}`, where `state` is
the tree {'target': parameters, 'state': {step, rng, optimizer}} with T5X's
names, and a folder `best/` of the same form. This module reads them, `writer`
writes them; only these two touch Orbax (0.11 to 0.12; its 1.0 will move names).
Nothing that is half written, cut or altered is ever returned: a checkpoint
counts once Orbax has committed it, and parameters must have the fingerprint
they were saved with.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from calm_jax.array_types import Params, PyTree
from calm_jax.checkpoints import agreement, directories, named_trees
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.orbax_scope import quiet_orbax
from calm_jax.checkpoints.writer import CheckpointWriter, SaveError, save
from calm_jax.model.config import T5Config

__all__ = [
  'Checkpoint',
  'CheckpointWriter',
  'SaveError',
  'check_same_run',
  'load_params',
  'read_metadata',
  'restore_train_state',
  'save',
]


class Checkpoint(NamedTuple):
  """What `load_params` returns.

  Attributes:
    params: the parameter tree, on the default device.
    config: the model's configuration.
    metadata: the JSON description it was saved with; see `CheckpointWriter`.
  """

  params: Params
  config: T5Config
  metadata: dict[str, Any]


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the JSON description of one checkpoint directory."""
  name = os.path.join(os.fspath(path), 'metadata', 'metadata')
  with _naming_the_checkpoint(path), open(name, 'rb') as file:
    return parse_metadata(path, file.read())


def parse_metadata(path: str, text: bytes) -> dict[str, Any]:
  """Returns the description of a checkpoint that was read from elsewhere."""
  with _naming_the_checkpoint(path):
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
      raise TypeError('metadata holds no JSON object')
    return metadata


def restore_train_state(
  path: str | os.PathLike, params: Params, train_state: Mapping[str, PyTree]
) -> tuple[Params, dict[str, PyTree]]:
  """Returns parameters and the rest of the training state of a checkpoint.

  Args:
    path: one checkpoint directory.
    params: the expected tree, arrays or ShapeDtypeStructs (with shardings, to
      restore onto another topology).
    train_state: likewise, as given to `save`.

  Raises:
    ValueError: if parameters or optimizer slots differ from the expected ones
      in name or shape, or the files are cut or altered.
  """
  path = os.path.abspath(os.fspath(path))
  expected = {'target': params, 'state': named_trees.as_dicts(train_state)}
  expected = jax.tree.map(_abstract, expected)
  with quiet_orbax(), ocp.PyTreeCheckpointer() as reader:
    with _naming_the_checkpoint(path):
      stored = _stored_shapes(reader, path)
    agreement.check_shapes(stored.get('target', {}), expected['target'], path)
    agreement.check_shapes(
      stored.get('state', {}),
      expected['state'],
      path,
      hint='was it written by a run with another optimizer?',
    )
    with _naming_the_checkpoint(path):
      tree = _restore(reader, path, expected)
  _check_fingerprint(path, tree['target'])
  rest = named_trees.from_dicts(tree['state'], dict(train_state))
  return tree['target'], rest


def load_params(
  path: str | os.PathLike,
  config: T5Config | None = None,
  *,
  expect_vocabulary: str | None = None,
  expect_params: PyTree | None = None,
) -> Checkpoint:
  """Returns parameters, configuration and metadata of a checkpoint.

  Args:
    path: a checkpoint directory, or a run directory, of which the best
      checkpoint is taken, or the latest if none is marked best.
    config: the configuration the caller wants, for instance with another dtype
      or dropout rate; by default the saved one.
    expect_vocabulary: the fingerprint of the vocabulary in use.
    expect_params: a tree of arrays or ShapeDtypeStructs to compare with.

  Raises:
    FileNotFoundError: if there is no checkpoint, saying what is there.
    ValueError: if the files are cut or altered, or if configuration, shapes or
      vocabulary differ from what was asked for.
  """
  path = directories.find_checkpoint(path)
  metadata = read_metadata(path)
  agreement.check_vocabulary(path, metadata, expect_vocabulary)
  saved = config_of(path, metadata)
  with quiet_orbax(), ocp.PyTreeCheckpointer() as reader:
    with _naming_the_checkpoint(path):
      stored = _stored_shapes(reader, path)['target']
    if expect_params is not None:
      agreement.check_shapes(stored, expect_params, path)
    if config is not None:
      agreement.check_config(path, saved, config)
    with _naming_the_checkpoint(path):
      params = _restore(reader, path, {'target': stored})['target']
  _check_fingerprint(path, params)
  return Checkpoint(params, config or saved, metadata)


def check_same_run(
  path: str, metadata: Mapping[str, Any], config: T5Config, context: Mapping
) -> None:
  """Checks that a run may be resumed with this model and context.

  Raises:
    ValueError: naming what differs from the checkpoint.
  """
  agreement.check_config(path, config_of(path, metadata), config)
  agreement.check_vocabulary(
    path, metadata, context.get('vocabulary_fingerprint')
  )
  saved = metadata['context']
  different = [
    f'{key}: expected {context.get(key)!r}, found {saved.get(key)!r}'
    for key in sorted({*saved, *context})
    if saved.get(key) != context.get(key)
  ]
  if different:
    raise ValueError(
      f'{path} is of another run: {"; ".join(different)}. Give the arguments '
      'it was started with, or another directory.'
    )


def _restore(reader, path: str, expected: PyTree) -> PyTree:
  """Reads the sub-tree `expected` of the state."""
  return reader.restore(
    os.path.join(path, 'state'),
    args=ocp.args.PyTreeRestore(
      item=expected,
      restore_args=ocp.checkpoint_utils.construct_restore_args(expected),
      partial_restore=True,
    ),
  )


def _stored_shapes(reader, path: str) -> PyTree:
  """Returns what is in a checkpoint as ShapeDtypeStructs, on this device."""
  metadata = reader.metadata(os.path.join(path, 'state'))
  sharding = _here()
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    metadata.item_metadata.tree,
    is_leaf=lambda leaf: hasattr(leaf, 'shape'),
  )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = _here()
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _here() -> jax.sharding.Sharding:
  """Where arrays go that nobody placed: each process restores all of them."""
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def config_of(path: str, metadata: Mapping[str, Any]) -> T5Config:
  """Returns the configuration of a description that `save` wrote."""
  try:
    return T5Config(**metadata['model_config'])
  except (KeyError, TypeError) as error:
    raise ValueError(
      f'{path} has metadata that this version cannot read: {error}'
    ) from error


def _check_fingerprint(path: str, params: Params) -> None:
  saved = read_metadata(path).get('parameter_fingerprint')
  found = parameter_fingerprint(params)
  if saved != found:
    raise ValueError(
      directories.damage_message(
        path, f'parameters have fingerprint {found}, not {saved}'
      )
    )


@contextlib.contextmanager
def _naming_the_checkpoint(path: str | os.PathLike) -> Iterator[None]:
  """Turns whatever a reader raises on bad files into one clear ValueError."""
  try:
    yield
  except Exception as error:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise ValueError(
      directories.damage_message(path, reason[0][:300])
    ) from error

"""What T5X's formats share: from the parameters in a file to a T5 model's.

T5X saves no configuration, so shapes have to tell it. What they do not tell
lies in a file beside the parameters where this library wrote them, is taken for
T5's where T5X did, and is said in a note. Layers that
`scan_layers` stacked are taken apart, and the early-exit classifier of CALM's
release is set aside from the parameters of T5.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from calm_jax.checkpoints import agreement, parameter_names
from calm_jax.checkpoints.parameter_names import Tensors
from calm_jax.checkpoints.storage import Folder
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.model.config import T5Config

# Beside `checkpoint` or `state`; T5X reads past it.
DESCRIPTION = 'calm_jax_config.json'
_NOT_IN_SHAPES = ('mlp_activations', 'relative_max_distance')
# How the note of what was assumed begins.
ASSUMED = 'T5X saves no configuration'
_CLASSIFIER = ('decoder/meta_cls/kernel', 'decoder/meta_cls/bias')


def as_checkpoint(
  path: str,
  form: str,
  tensors: Tensors,
  *,
  step: int,
  notes: tuple[str, ...] = (),
  described: Mapping[str, Any] | None = None,
) -> StoredCheckpoint:
  """Returns the checkpoint that T5X's parameters make.

  Args:
    path: where they lie.
    form: 't5x' or 't5x_orbax'.
    tensors: by T5X's names, joined with slashes.
    step: training steps taken.
    notes: see `StoredCheckpoint`.
    described: what `describe` wrote beside them; None if nothing lies there.

  Raises:
    ValueError: naming parameters that are missing, left over or misshapen, or
      what the description says that cannot be.
  """
  tensors = dict(tensors)
  classifier = _take_classifier(path, tensors)
  if classifier is not None:
    notes = (
      *notes,
      "decoder/meta_cls, CALM's classifier, was read: its two logits become "
      'one, their difference.',
    )
  if parameter_names.is_stacked(tensors):
    tensors = parameter_names.from_stacked(tensors)
    notes = (*notes, 'Layers are stacked (scan_layers) and were taken apart.')
  config = config_from_shapes(
    path, {name: tensor.shape for name, tensor in tensors.items()}
  )
  if described is None:
    notes = (*notes, _assumed(config))
  else:
    config = _as_described(path, config, described)
  check_parameters(path, tensors, config)
  return StoredCheckpoint(path, form, config, tensors, step, classifier, notes)


def describe(path: str | os.PathLike, config: T5Config) -> None:
  """Writes what shapes do not tell into an existing folder."""
  fields = {name: getattr(config, name) for name in _NOT_IN_SHAPES}
  with open(os.path.join(path, DESCRIPTION), 'w', encoding='utf-8') as file:
    json.dump(fields, file)


def read_description(folder: Folder) -> dict[str, Any] | None:
  """Returns what `describe` wrote into a folder, None if it did not.

  Raises:
    ValueError: if it is damaged.
  """
  try:
    fields = json.loads(folder.read(DESCRIPTION))
  except FileNotFoundError:
    return None
  except (RecursionError, ValueError) as error:
    raise ValueError(
      f'{folder.path}/{DESCRIPTION} is damaged ({error}); get it again'
    ) from error
  if not isinstance(fields, dict) or fields.keys() != set(_NOT_IN_SHAPES):
    raise ValueError(
      f'{folder.path}/{DESCRIPTION} should say {list(_NOT_IN_SHAPES)}; get it '
      'again'
    )
  return fields


def _assumed(config: T5Config) -> str:
  return (
    f'{ASSUMED}: feed-forward '
    f'{"-".join(config.mlp_activations)} and relative positions up to '
    f"{config.relative_max_distance} were assumed, as T5's are; "
    'checkpoints.load(path, config) takes others (convert: --activations, '
    '--relative_max_distance).'
  )


def _as_described(
  path: str, config: T5Config, described: Mapping[str, Any]
) -> T5Config:
  try:
    changed = dataclasses.replace(config, **described)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path}: {DESCRIPTION} is damaged: {error}') from error
  if len(changed.mlp_activations) != len(config.mlp_activations):
    raise ValueError(
      f'{path}: {DESCRIPTION} says mlp_activations '
      f'{described["mlp_activations"]}, and the parameters have '
      f'{len(config.mlp_activations)}; get the checkpoint again'
    )
  return changed


def check_parameters(path: str, tensors: Tensors, config: T5Config) -> None:
  """Raises ValueError unless tensors are exactly a configuration's."""
  agreement.check_depth(path, config, len(tensors))
  agreement.check_shapes(
    tensors,
    agreement.things_of_shapes(
      {
        parameter.name: parameter.shape
        for parameter in parameter_names.parameters(config)
      }
    ),
    path,
    hint='Its other parameters tell the expected ones.',
  )


def _take_classifier(path: str, tensors: Tensors):
  """Removes the release's classifier; returns ours, None without one."""
  found = [tensors.pop(name, None) for name in _CLASSIFIER]
  if found == [None, None]:
    return None
  for name, tensor, ndim in zip(_CLASSIFIER, found, (2, 1), strict=True):
    if tensor is None or len(tensor.shape) != ndim or tensor.shape[-1] != 2:
      raise ValueError(
        f'{path}: {name} should have {ndim} dimensions, the last of size 2 '
        f'(exit or not), found {tensor.shape if tensor else "nothing"}'
      )
  kernel, bias = (tensor.read().astype(np.float32) for tensor in found)
  return {'kernel': kernel[:, 1] - kernel[:, 0], 'bias': bias[1] - bias[0]}


def config_from_shapes(
  path: str, shapes: Mapping[str, tuple[int, ...]]
) -> T5Config:
  """Returns the configuration that parameters (ours, unstacked) must be of.

  What shapes do not say is T5's: GELU where there is a gate and ReLU where
  there is none, relative positions up to 128.

  Args:
    path: of the checkpoint, for messages.
    shapes: by our names.

  Raises:
    ValueError: if a parameter that tells is missing or has other dimensions.
  """

  def shape(name, ndim=2):
    found = shapes.get(name)
    if found is None or len(found) != ndim:
      raise ValueError(
        f'{path} holds no T5: {name} should be a matrix, found '
        f'{found or "nothing"} among {sorted(shapes)[:5]}'
      )
    return found

  vocab_size, embed_dim = shape('token_embedder/embedding')
  heads, buckets = shape('encoder/relpos_bias/rel_embedding')
  joined = shape('encoder/layers_0/attention/query/kernel')[1]
  gated = 'encoder/layers_0/mlp/wi_0/kernel' in shapes
  wi = f'encoder/layers_0/mlp/{"wi_0" if gated else "wi"}/kernel'
  if joined % heads:
    raise ValueError(
      f'{path}: {joined} columns of encoder/layers_0/attention/query/kernel '
      f'are not a multiple of the {heads} heads of rel_embedding'
    )
  return T5Config(
    vocab_size=vocab_size,
    embed_dim=embed_dim,
    num_heads=heads,
    head_dim=joined // heads,
    mlp_dim=shape(wi)[1],
    num_encoder_layers=_count_layers(shapes, 'encoder'),
    num_decoder_layers=_count_layers(shapes, 'decoder'),
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    tied_embeddings='decoder/logits_dense/kernel' not in shapes,
    relative_buckets=buckets,
  )


def _count_layers(shapes: Mapping, stack: str) -> int:
  found = (re.match(rf'{stack}/layers_(\d+)/', name) for name in shapes)
  return max((int(match[1]) + 1 for match in found if match), default=0)

"""What T5X's formats share: from the parameters in a file to a T5 model's.

T5X saves no configuration, so shapes have to tell it, and neighbouring files
what shapes do not (`t5x_description`). Layers that
`scan_layers` stacked are taken apart, and the early-exit classifier of CALM's
release is set aside from the parameters of T5.
"""

import re
from collections.abc import Mapping

import numpy as np

from calm_jax.checkpoints import (
  agreement,
  parameter_names,
  t5x_description,
)
from calm_jax.checkpoints.parameter_names import Tensors
from calm_jax.checkpoints.storage import Folder
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.model.config import T5Config

_CLASSIFIER = ('decoder/meta_cls/kernel', 'decoder/meta_cls/bias')


def as_checkpoint(
  path: str,
  form: str,
  tensors: Tensors,
  *,
  step: int,
  notes: tuple[str, ...] = (),
  folder: Folder | None = None,
) -> StoredCheckpoint:
  """Returns the checkpoint that T5X's parameters make.

  Args:
    path: where they lie.
    form: 't5x' or 't5x_orbax'.
    tensors: by T5X's names, joined with slashes.
    step: training steps taken.
    notes: see `StoredCheckpoint`.
    folder: checkpoint_<step>, where what shapes do not tell may be said.

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
  config, said = t5x_description.settle(config, folder)
  notes = (*notes, *said)
  check_parameters(path, tensors, config)
  return StoredCheckpoint(path, form, config, tensors, step, classifier, notes)


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

"""THE table of parameter names: ours, Hugging Face's and T5X's stacked ones.

Ours are T5X's, whose plain checkpoints need no other column. From the rows both
directions of every conversion are generated, the shapes that a checkpoint must
have, and the round-trip tests. Values are never changed: a conversion renames,
transposes, stacks layers and splits heads.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from calm_jax import sharding
from calm_jax.array_types import PyTree
from calm_jax.checkpoints import stored_tensors
from calm_jax.checkpoints.stored_tensors import StoredTensor
from calm_jax.model.config import T5Config

Tensors = dict[str, StoredTensor]


class Row(NamedTuple):
  """One kind of parameter.

  Attributes:
    name: ours; `{layer}` stands for the number of the layer.
    axes: its dimensions by the letters of the architecture (J = H * K joined,
      R relative-position buckets).
    huggingface: Hugging Face's name, in PyTorch's layout.
    transposed: whether that layout is transposed.
    stacked: T5X's name with `scan_layers` (layers stacked along dimension 1,
      and J split into H and K), where it differs.
    when: which configurations have it; all if empty.
  """

  name: str
  axes: str
  huggingface: str
  transposed: bool = True
  stacked: str | None = None
  when: str = ''


def _norm(stack: str, name: str, place: int) -> Row:
  return Row(
    f'{stack}/layers_{{layer}}/{name}/scale',
    'D',
    f'{stack}.block.{{layer}}.layer.{place}.layer_norm.weight',
    False,
    f'{stack}/{stack}/{name}/scale',
  )


def _attention(stack: str, name: str, theirs: str, place: int) -> list[Row]:
  return [
    Row(
      f'{stack}/layers_{{layer}}/{name}/{matrix}/kernel',
      'JD' if matrix == 'out' else 'DJ',
      f'{stack}.block.{{layer}}.layer.{place}.{theirs}.{letter}.weight',
      True,
      f'{stack}/{stack}/{name}/{matrix}/kernel',
    )
    for matrix, letter in zip(
      ('query', 'key', 'value', 'out'), 'qkvo', strict=True
    )
  ]


def _feed_forward(stack: str, place: int) -> list[Row]:
  return [
    Row(
      f'{stack}/layers_{{layer}}/mlp/{matrix}/kernel',
      axes,
      f'{stack}.block.{{layer}}.layer.{place}.DenseReluDense.{matrix}.weight',
      True,
      f'{stack}/{stack}/mlp/{matrix}/kernel',
      when,
    )
    for matrix, axes, when in (
      ('wi', 'DF', 'plain'),
      ('wi_0', 'DF', 'gated'),
      ('wi_1', 'DF', 'gated'),
      ('wo', 'FD', ''),
    )
  ]


def _around(stack: str) -> list[Row]:
  return [
    Row(
      f'{stack}/relpos_bias/rel_embedding',
      'HR',
      f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
      True,
      # Every layer has one there; ours are shared by the layers of a stack.
      f'{stack}/{stack}/relpos_bias/rel_embedding',
    ),
    Row(
      f'{stack}/{stack}_norm/scale',
      'D',
      f'{stack}.final_layer_norm.weight',
      False,
    ),
  ]


ROWS = (
  Row('token_embedder/embedding', 'VD', 'shared.weight', False),
  _norm('encoder', 'pre_attention_layer_norm', 0),
  *_attention('encoder', 'attention', 'SelfAttention', 0),
  _norm('encoder', 'pre_mlp_layer_norm', 1),
  *_feed_forward('encoder', 1),
  *_around('encoder'),
  _norm('decoder', 'pre_self_attention_layer_norm', 0),
  *_attention('decoder', 'self_attention', 'SelfAttention', 0),
  _norm('decoder', 'pre_cross_attention_layer_norm', 1),
  *_attention('decoder', 'encoder_decoder_attention', 'EncDecAttention', 1),
  _norm('decoder', 'pre_mlp_layer_norm', 2),
  *_feed_forward('decoder', 2),
  *_around('decoder'),
  Row('decoder/logits_dense/kernel', 'DV', 'lm_head.weight', when='untied'),
)


class Parameter(NamedTuple):
  """One parameter of a configuration.

  Attributes:
    name: ours.
    shape: of ours.
    huggingface: the name there.
    row: where it comes from.
    layer: the number of its layer, None outside of layers.
  """

  name: str
  shape: tuple[int, ...]
  huggingface: str
  row: Row
  layer: int | None


def parameters(config: T5Config) -> list[Parameter]:
  """Returns every parameter that a model of this configuration has."""
  sizes = _sizes(config)
  kinds = {
    '',
    'gated' if len(config.mlp_activations) == 2 else 'plain',
    'tied' if config.tied_embeddings else 'untied',
  }
  return [
    Parameter(
      row.name.format(layer=layer),
      tuple(sizes[letter] for letter in row.axes),
      row.huggingface.format(layer=layer),
      row,
      layer,
    )
    for row in ROWS
    if row.when in kinds
    for layer in _layers(row, config)
  ]


def _layers(row: Row, config: T5Config):
  if '{layer}' not in row.name:
    return (None,)
  return range(_depth(row, config))


def _depth(row: Row, config: T5Config) -> int:
  if row.name.startswith('encoder/'):
    return config.num_encoder_layers
  return config.num_decoder_layers


def _sizes(config: T5Config) -> dict[str, int]:
  return {
    'V': config.vocab_size,
    'D': config.embed_dim,
    'J': config.num_heads * config.head_dim,
    'F': config.mlp_dim,
    'H': config.num_heads,
    'R': config.relative_buckets,
  }


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tree of what names joined by slashes stand for."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *outer, last = name.split('/')
    inner = tree
    for part in outer:
      inner = inner.setdefault(part, {})
    inner[last] = leaf
  return tree


def flattened(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree by their names joined by slashes."""
  return {
    sharding.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def to_huggingface(config: T5Config, tensors: Mapping) -> Tensors:
  """Renames and transposes our parameters to Hugging Face's."""
  return {
    parameter.huggingface: _turned(parameter, tensors[parameter.name])
    for parameter in parameters(config)
  }


def from_huggingface(config: T5Config, tensors: Mapping) -> Tensors:
  """Renames and transposes Hugging Face's parameters to ours."""
  return {
    parameter.name: _turned(parameter, tensors[parameter.huggingface])
    for parameter in parameters(config)
  }


def huggingface_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
  """Returns the shapes that Hugging Face's parameters must have."""
  return {
    parameter.huggingface: parameter.shape[::-1]
    if parameter.row.transposed
    else parameter.shape
    for parameter in parameters(config)
  }


def _turned(parameter: Parameter, tensor: StoredTensor) -> StoredTensor:
  if not parameter.row.transposed:
    return tensor
  return stored_tensors.transposed(tensor)


def is_stacked(names) -> bool:
  """Whether names are those of T5X's `scan_layers`."""
  return any(re.match(r'(encoder/encoder|decoder/decoder)/', n) for n in names)


def _rows(config: T5Config) -> list[Row]:
  return list({p.row: None for p in parameters(config)})


def to_stacked(config: T5Config, tensors: Mapping) -> Tensors:
  """Stacks our layers as T5X's `scan_layers` does."""
  result = {}
  for row in _rows(config):
    if row.stacked is None:
      result[row.name] = tensors[row.name]
      continue
    # A table that our layers share is repeated: `{layer}` is not in its name.
    layers = [
      _split(row, config, tensors[row.name.format(layer=layer)])
      for layer in range(_depth(row, config))
    ]
    result[row.stacked] = stored_tensors.stacked(layers, row.stacked)
  return result


def from_stacked(tensors: Mapping[str, StoredTensor]) -> Tensors:
  """Takes the layers out of T5X's stacks; other parameters stay as they are.

  Raises:
    ValueError: if a stack has other dimensions than it should, or its layers
      have different relative-position biases.
  """
  result = dict(tensors)
  for row in ROWS:
    stack = result.pop(row.stacked, None)
    if stack is None:
      continue
    if len(stack.shape) != len(row.axes) + 1 + ('J' in row.axes):
      raise ValueError(
        f'{stack} has shape {stack.shape}; with scan_layers T5X stacks '
        f'the layers of {row.axes} along dimension 1 and splits J into heads'
      )
    shared = '{layer}' not in row.name
    if shared:
      _check_shared(stack)
    for layer in range(1 if shared else stack.shape[1]):
      tensor = stored_tensors.layer_of(stack, layer)
      if 'J' in row.axes:
        tensor = stored_tensors.joined_heads(tensor, row.axes.index('J'))
      result[row.name.format(layer=layer)] = tensor
  return result


def _split(row: Row, config: T5Config, tensor: StoredTensor) -> StoredTensor:
  if 'J' not in row.axes:
    return tensor
  axis = row.axes.index('J')
  return stored_tensors.split_heads(tensor, axis, config.num_heads)


def _check_shared(stack: StoredTensor) -> None:
  values = stack.read()
  differing = [
    layer
    for layer in range(1, values.shape[1])
    if not np.array_equal(values[:, layer], values[:, 0])
  ]
  if differing:
    raise ValueError(
      f'{stack} differs between layers ({differing} from 0), as in umT5 '
      'and scalable_t5: here, as in T5, the layers of a stack share one table '
      'of relative positions, so this model cannot be represented'
    )

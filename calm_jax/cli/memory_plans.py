"""What a job would hold on each device, worked out from shapes alone.

For --dry_run: the mesh, where every parameter lies, and bytes per device. No
array is made and nothing is compiled, so that a model too large for this
machine can be planned on it, also with more devices than it has
(XLA_FLAGS=--xla_force_host_platform_device_count=64).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import decoding, model, sharding, training
from calm_jax.array_types import PyTree
from calm_jax.training import parameter_table, placement

# Rows of a mesh that are shown.
_SHOWN_ROWS = 16


def describe_training(
  config: model.T5Config,
  optimizer: training.Optimizer,
  *,
  mesh: jax.sharding.Mesh | None,
  partitioning: str,
  batch_size: int,
) -> str:
  """Returns the mesh, the table of parameters and the memory of training.

  Args:
    config: the model.
    optimizer: the optimizer.
    mesh: as for `training.train`.
    partitioning: as for `training.train`.
    batch_size: rows of a batch of all processes together.

  Raises:
    ValueError: for what `training.train` would refuse, and for a batch that
      the devices cannot share.
  """
  place = (
    placement.OneDevice()
    if mesh is None
    else placement.OnMesh(mesh, partitioning)
  )
  rows = _rows_per_device(batch_size, mesh)
  state = place.shapes(
    lambda params: training.init_train_state(config, optimizer, params=params),
    None,
  )
  params = bytes_per_device(state.params)
  parts = {
    'parameters': params,
    'optimizer state': bytes_per_device(state.opt_state),
    # Frozen ones have none: at most.
    'gradients': params,
  }
  return '\n'.join(
    [
      describe_mesh(mesh),
      parameter_table.parameter_table(state.params, place),
      _memory_lines(parts),
      f'activations of {rows} rows per device come on top',
    ]
  )


def describe_decoding_memory(
  config: model.T5Config,
  *,
  mesh: jax.sharding.Mesh | None = None,
  partitioning: str = 'data_parallel',
  batch_size: int,
  input_length: int,
  target_length: int,
  rows_per_request: int = 1,
) -> str:
  """Returns what decoding holds on each device, as text.

  Args:
    config: the model; its `dtype` is that of weights and cache.
    mesh: rows are shared over its axis data, heads over model; None for one
      device.
    partitioning: where parameters lie, as in training.
    batch_size: requests that are decoded together, on all devices.
    input_length: S, of the sources in tokens.
    target_length: T, of the outputs in tokens.
    rows_per_request: samples or beams of each request.

  Raises:
    ValueError: for a batch that the devices cannot share.
  """
  requests = _rows_per_device(batch_size, mesh)
  params = jax.eval_shape(
    lambda key: model.init_params(config, key), jax.random.key(0)
  )
  shardings = None
  if mesh is not None:
    shardings = sharding.param_shardings(params, mesh, partitioning)

  def start(params, inputs):
    bound = decoding.bind(
      model.as_layered_decoder(config),
      params,
      depth_loop=decoding.UnrolledDepthLoop(),
    )
    return bound.start(bound.encode(inputs), target_length)

  cache = jax.eval_shape(
    start,
    params,
    jax.ShapeDtypeStruct((requests * rows_per_request, input_length), 'int32'),
  )
  models = 1 if mesh is None else mesh.shape[sharding.MODEL]
  heads = models if config.num_heads % models == 0 else 1
  parts = {
    f'parameters ({config.dtype})': bytes_per_device(
      _as_decoded(params, config), shardings
    ),
    'self-attention K/V': _bytes((cache.self_key, cache.self_value)) // heads,
    'cross-attention K/V': _bytes((cache.cross_key, cache.cross_value))
    // heads,
  }
  return '\n'.join(
    [
      describe_mesh(mesh),
      f'{requests} requests per device, {rows_per_request} rows each, '
      f'{input_length} source and {target_length} target tokens',
      _memory_lines(parts),
      'activations of one position, and of the encoder, come on top',
    ]
  )


def describe_mesh(mesh: jax.sharding.Mesh | None) -> str:
  """Returns the axes of a mesh, and which devices lie where."""
  if mesh is None:
    device = jax.devices()[0]
    return f'mesh: none, one device ({device.device_kind})'
  axes = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  kind = mesh.devices.flat[0].device_kind
  owners = {device.process_index for device in mesh.devices.flat}
  lines = [f'mesh: {axes} over {mesh.size} x {kind}, processes: {len(owners)}']
  for number, row in enumerate(mesh.devices[:_SHOWN_ROWS]):
    devices = ' '.join(str(device.id) for device in row)
    holders = sorted({device.process_index for device in row})
    lines.append(
      f'  data {number}: devices {devices} of process '
      f'{", ".join(map(str, holders))}'
    )
  if len(mesh.devices) > _SHOWN_ROWS:
    lines.append(f'  and {len(mesh.devices) - _SHOWN_ROWS} more')
  return '\n'.join(lines)


def bytes_per_device(shapes: PyTree, shardings: PyTree | None = None) -> int:
  """Returns the bytes that each device holds of a tree.

  Args:
    shapes: arrays or shapes; with shardings of their own, or on one device.
    shardings: instead of their own.
  """
  leaves = jax.tree.leaves(shapes)
  if shardings is None:
    where = [getattr(leaf, 'sharding', None) for leaf in leaves]
  else:
    where = jax.tree.leaves(shardings)
  return sum(
    math.prod(
      leaf.shape if place is None else place.shard_shape(tuple(leaf.shape))
    )
    * _itemsize(leaf.dtype)
    for leaf, place in zip(leaves, where, strict=True)
  )


def _bytes(shapes: PyTree) -> int:
  return sum(
    math.prod(leaf.shape) * _itemsize(leaf.dtype)
    for leaf in jax.tree.leaves(shapes)
  )


def _itemsize(dtype: Any) -> int:
  # A random key is two words of 32 bits.
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    return 8
  return jnp.dtype(dtype).itemsize


def _as_decoded(params: PyTree, config: model.T5Config) -> PyTree:
  """Returns the shapes in the dtype of decoding; vectors are float32."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, config.activation_dtype if len(leaf.shape) > 1 else 'float32'
    ),
    params,
  )


def _rows_per_device(batch_size: int, mesh: jax.sharding.Mesh | None) -> int:
  shares = 1 if mesh is None else mesh.shape[sharding.DATA]
  if batch_size % shares:
    raise ValueError(
      f'{shares} devices of the mesh axis data cannot share a batch of '
      f'{batch_size}: take a multiple of {shares}'
    )
  return batch_size // shares


def _memory_lines(parts: dict[str, int]) -> str:
  """Returns the parts, their sum and what the device has."""
  total = sum(parts.values())
  width = max(map(len, parts))
  lines = ['memory per device:']
  lines += [
    f'  {name.ljust(width)}  {size / 1e9:9.4f} GB'
    for name, size in parts.items()
  ]
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
  there = '' if limit is None else f' of {limit / 1e9:.1f} GB'
  fits = limit is None or total <= limit
  lines.append(
    f'  {"in all".ljust(width)}  {total / 1e9:9.4f} GB{there}'
    + ('' if fits else ': it does not fit; use more devices or fsdp')
  )
  return '\n'.join(lines)

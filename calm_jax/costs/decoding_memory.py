"""What decoding would hold on each device; see `sharding.memory`."""

import jax

from calm_jax import decoding, model, sharding
from calm_jax.array_types import PyTree
from calm_jax.sharding import memory


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
  requests = memory.rows_per_device(batch_size, mesh)
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
    f'parameters ({config.dtype})': memory.bytes_per_device(
      _as_decoded(params, config), shardings
    ),
    'self-attention K/V': memory.bytes_per_device(
      (cache.self_key, cache.self_value)
    )
    // heads,
    'cross-attention K/V': memory.bytes_per_device(
      (cache.cross_key, cache.cross_value)
    )
    // heads,
  }
  return '\n'.join(
    [
      memory.describe_mesh(mesh),
      f'{requests} requests per device, {rows_per_request} rows each, '
      f'{input_length} source and {target_length} target tokens',
      memory.describe_memory(parts),
      'activations of one position, and of the encoder, come on top',
    ]
  )


def _as_decoded(params: PyTree, config: model.T5Config) -> PyTree:
  """Returns the shapes in the dtype of decoding; vectors are float32."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, config.activation_dtype if len(leaf.shape) > 1 else 'float32'
    ),
    params,
  )

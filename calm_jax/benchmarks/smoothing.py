"""Scales moved from states into weights before both are rounded to 8 bits.

SmoothQuant (arXiv 2211.10438): a channel that is large in the states is divided
by s = max|x|^a / max|W|^(1 - a), and the rows of the matrices that read it are
multiplied by s. In float nothing changes. Where a norm stands before the
matrices, the division goes into its scale and costs nothing. An experiment of
the report on quantisation.
"""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.benchmarks import quantisation_captures
from calm_jax.model import int8_params


def smoothed(
  config: model.T5Config,
  params: Params,
  largest: Mapping[str, np.ndarray],
  *,
  share: float,
) -> Params:
  """Returns parameters of the same model, states and weights closer in size.

  The output matrix of a tied model is its input table, and left as it is.

  Args:
    config: the model's shape.
    params: its parameters, float.
    largest: path -> largest |x| of each input channel, of `matrix_errors`.
    share: a, in 0..1; how much of the states' sizes goes into the weights.

  Raises:
    ValueError: for another share.
  """
  if not 0 <= share <= 1:
    raise ValueError(f'smoothing is {share}; give a number in 0..1, like 0.5')
  for norm, paths in _readers(config):
    kernels = [
      quantisation_captures.matrix_at(config, params, path) for path in paths
    ]
    rows = jnp.max(jnp.stack([jnp.max(jnp.abs(k), axis=1) for k in kernels]), 0)
    states = jnp.asarray(largest[paths[0]], jnp.float32)
    scales = states**share / rows ** (1 - share)
    # Channels that are never used, or never read, stay as they are.
    scales = jnp.where((states > 0) & (rows > 0), scales, 1.0)
    for path, kernel in zip(paths, kernels, strict=True):
      params = _changed(params, f'{path}/kernel', kernel * scales[:, None])
    scale = _at(params, f'{norm}/scale')
    params = _changed(params, f'{norm}/scale', scale / scales)
  return params


def _readers(config: model.T5Config) -> Iterator[tuple[str, list[str]]]:
  """Yields every norm, and all matrices that read what it gives."""
  gates = len(config.mlp_activations)
  ins = [f'wi_{gate}' for gate in range(gates)] if gates > 1 else ['wi']
  stacks = [f'decoder/layers_{i}' for i in range(config.num_decoder_layers)]
  for layer in stacks:
    own = [
      f'{layer}/self_attention/{name}' for name in ('query', 'key', 'value')
    ]
    yield f'{layer}/pre_self_attention_layer_norm', own
    yield (
      f'{layer}/pre_cross_attention_layer_norm',
      [f'{layer}/encoder_decoder_attention/query'],
    )
    yield f'{layer}/pre_mlp_layer_norm', [f'{layer}/mlp/{name}' for name in ins]
  yield (
    'encoder/encoder_norm',
    [
      f'{layer}/encoder_decoder_attention/{name}'
      for layer in stacks
      for name in ('key', 'value')
    ],
  )
  if not config.tied_embeddings:
    yield 'decoder/decoder_norm', [int8_params.OUTPUT]


def _at(params: Params, path: str) -> Array:
  for name in path.split('/'):
    params = params[name]
  return params


def _changed(params: Params, path: str, leaf: Array) -> Params:
  """Returns a tree with another leaf at a path."""
  name, _, rest = path.partition('/')
  child = _changed(params[name], rest, leaf) if rest else leaf
  return {**params, name: child}

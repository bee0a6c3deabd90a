"""What the matrices of a T5 are multiplied with, teacher forced."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.model import int8_params, layers


class Batch(NamedTuple):
  """Inputs int [B, S] and outputs int [B, T]; 0 is padding in both."""

  inputs: np.ndarray
  outputs: np.ndarray


def teacher_forced_logits(
  config: model.T5Config, params: Params, inputs: Array, outputs: Array
) -> Array:
  """Returns logits [B, T, V] of the outputs, teacher forced."""
  shifted = jnp.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
  return model.Transformer(config).apply({'params': params}, inputs, shifted)


def captured_states(
  config: model.T5Config, params: Params, inputs: Array, outputs: Array
) -> dict[str, Array]:
  """Returns path -> what the matrix there is multiplied with, [..., D].

  Of both stacks, with the output matrix of tied models, too.
  """
  captured = {}

  def look(call, arguments, keywords, context):
    result = call(*arguments, **keywords)
    path = '/'.join(context.module.path)
    if context.method_name == '__call__':
      if isinstance(context.module, layers.Dense):
        captured[path] = arguments[0]
      elif path == 'decoder/decoder_norm' and config.tied_embeddings:
        captured[int8_params.OUTPUT] = result / math.sqrt(config.embed_dim)
    return result

  with nn.intercept_methods(look):
    teacher_forced_logits(config, params, inputs, outputs)
  return captured


def where_real(path: str, batch: Batch) -> np.ndarray:
  """Returns where what a matrix reads is no padding, bool [B, S] or [B, T]."""
  source = ('encoder_decoder_attention/key', 'encoder_decoder_attention/value')
  if path.startswith('encoder/') or path.endswith(source):
    return batch.inputs > 0
  return batch.outputs > 0


def matrix_at(config: model.T5Config, params: Params, path: str) -> Array:
  """Returns the matrix at a path, float [D, F]; of tied models, the table."""
  if path == int8_params.OUTPUT and config.tied_embeddings:
    return jnp.swapaxes(params['token_embedder']['embedding'], 0, 1)
  for name in path.split('/'):
    params = params[name]
  return params['kernel']

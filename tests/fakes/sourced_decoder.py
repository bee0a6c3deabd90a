"""The toy decoder with a source to choose from, and a scorer worked out.

A source position's state is (token, 1), and a row's ease is the mean of the
tokens that are read. The scorer likes large tokens: with norm(x) of (t, 1) it
scores sqrt(2) t / sqrt(t^2 + 1) - BIAS, above 0 for tokens from 2 on.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from fakes import toy_decoder as toy

from calm_jax import decoding
from calm_jax.source_scorer import SourceScorer

BIAS = 1.1


def _encode(params, inputs):
  del params
  tokens = inputs.astype(jnp.float32)
  states = jnp.stack([tokens, jnp.ones_like(tokens)], axis=-1)
  return {'states': states, 'mask': inputs != 0}


def _start(params, encoded, max_length):
  tokens, mask = encoded['states'][..., 0], encoded['mask']
  ease = jnp.where(mask, tokens, 0.0).sum(axis=1) / mask.sum(axis=1)
  return toy.toy_decoder().start(params, {'ease': ease}, max_length)


def _select_source(encoded, indices, valid):
  return {
    'states': jnp.take_along_axis(
      encoded['states'], indices[..., None], axis=1
    ),
    'mask': jnp.take_along_axis(encoded['mask'], indices, axis=1) & valid,
  }


DECODER = dataclasses.replace(
  toy.toy_decoder(),
  encode=_encode,
  start=_start,
  source_states=lambda encoded: (encoded['states'], encoded['mask']),
  select_source=_select_source,
)
SCORER = SourceScorer(np.array([1.0, 0.0]), -BIAS)


def sourced_bound(**options):
  """Returns the decoder with its parameters; options are those of `bind`."""
  return decoding.bind(DECODER, toy.toy_params(), **options)

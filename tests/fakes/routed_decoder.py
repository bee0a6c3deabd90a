"""The toy decoder with a source to see, and a router that can be worked out.

A request needs as many layers as its source has tokens, all 3 at most: the
router's log-odds of needing more than k are SURE * log(length / (k + 1/2)).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from fakes import toy_decoder as toy

from calm_jax import decoding, exits
from calm_jax.interfaces import BoundDecoder

SURE = 10.0


def _encode(params, inputs):
  return {
    **toy.toy_decoder().encode(params, inputs),
    'inputs': inputs,
  }


def _pool_source(encoded):
  inputs = encoded['inputs']
  lengths = (inputs != 0).sum(axis=1, dtype=jnp.int32)
  mean = inputs.sum(axis=1) / jnp.maximum(lengths, 1)
  pooled = jnp.stack([mean, jnp.ones_like(mean)], axis=-1)
  return pooled.astype(jnp.float32), lengths


DECODER = dataclasses.replace(
  toy.toy_decoder(), encode=_encode, pool_source=_pool_source
)
ROUTER = exits.Router(
  bias=-SURE * np.log(np.array([1.5, 2.5])),
  state=np.zeros((2, 1)),
  length_weights=np.array([SURE]),
)


def routed_bound(**options) -> BoundDecoder:
  """Returns the decoder with its parameters; options are those of `bind`."""
  return decoding.bind(DECODER, toy.toy_params(), **options)


def expected_confidence(length: int, depth: int) -> float:
  """Returns how likely so many layers suffice for a source, worked out."""
  if depth == 3:
    return 1.0
  return 1.0 / (1.0 + (length / (depth + 0.5)) ** SURE)

"""A LayeredDecoder whose answers can be worked out by hand.

A state is (x, k): x is the token the layer would say (mod 10) and k how sure it
is. Per layer, at position p, with V = 10:

  attend        x <- x + (sum of x that ENTERED this layer at positions q < p)
                k <- k + ease, where `ease` is the first source token of the row
  feed_forward  x <- (x + 1) mod 10

So the K/V of a layer are the x that enters it, and the tokens depend on what
was filled in for layers that were skipped. Logits are log(9 k) at token x and 0
elsewhere, so the best probability is k / (k + 1), the margin is
(k - 1/9) / (k + 1) and, with ease 1, k is the number of layers run.

By hand, 3 layers, start token 0 (values that entered layers 0, 1, 2 in
brackets; `|` separates what was run from what was filled in):

  full model      p0: 0 1 2 -> 3        [0 1 2]
                  p1: 3+0+1=4, 4+1+1=6, 6+2+1=9 -> 9            [3 4 6]
                  p2: 9+3+1=3, 3+5+1=9, 9+8+1=8 -> 8            [9 3 9]
                  p3: 8+12+1=1, 1+8+1=0, 0+17+1=8 -> 8
  always exit 1   p0: 0 -> 1            [0 | 1 1]
                  p1: 1+0+1=2 -> 2      [1 | 2 2]
                  p2: 2+1+1=4 -> 4      [2 | 4 4]
                  p3: 4+3+1=8 -> 8
  exits 2, 1, 3   p0: 0 1 -> 2          [0 1 | 2]
                  p1: 2+0+1=3 -> 3      [2 | 3 3]
                  p2: 3+2+1=6, 6+4+1=1, 1+5+1=7 -> 7            [3 6 1]
  the same with   p0: 0 1 -> 2          [0 1 | 1], the state after layer 1
  first-exit fill p1: 2+0+1=3 -> 3      [2 | 3 3]
                  p2: 3+2+1=6, 6+4+1=1, 1+4+1=6 -> 6
"""

import jax
import jax.numpy as jnp

from calm_jax import decoding
from calm_jax.interfaces import BoundDecoder, LayeredDecoder

VOCAB_SIZE = 10
FULL_TOKENS = (3, 9, 8, 8)
EXIT_1_TOKENS = (1, 2, 4, 8)
EXIT_213_TOKENS = (2, 3, 7)
EXIT_213_FIRST_EXIT_TOKENS = (2, 3, 6)


def toy_params(num_layers: int = 3):
  """Returns what each layer adds, which is 1."""
  return {'step': jnp.ones((num_layers,), jnp.float32)}


def toy_decoder(num_layers: int = 3) -> LayeredDecoder:
  """Returns the decoder of the module's docstring; equal if called again."""
  return _DECODERS.setdefault(num_layers, _build(num_layers))


def toy_bound(num_layers: int = 3, **options) -> BoundDecoder:
  """Returns it with its parameters; options are those of `bind`."""
  return decoding.bind(
    toy_decoder(num_layers), toy_params(num_layers), **options
  )


_DECODERS: dict[int, LayeredDecoder] = {}


def _build(num_layers):
  def start(params, encoded, max_length):
    del params
    batch_size = encoded['ease'].shape[0]
    values = jnp.zeros((batch_size, num_layers, max_length), jnp.float32)
    return {'ease': encoded['ease'], 'values': values}

  return LayeredDecoder(
    num_layers=num_layers,
    embed_dim=2,
    vocab_size=VOCAB_SIZE,
    dtype=jnp.dtype('float32'),
    prepare=lambda params, traced_layers=True: params,
    encode=lambda params, inputs: {'ease': inputs[:, 0].astype(jnp.float32)},
    start=start,
    embed=_embed,
    fill_layer=_fill_layer,
    attend=_attend,
    feed_forward=_feed_forward,
    logits=_logits,
    output_rows=lambda params, ids: _embed(params, ids, None),
    take_rows=lambda cache, rows: jax.tree.map(lambda x: x[rows], cache),
  )


def _embed(params, tokens, positions):
  del params, positions
  x = tokens.astype(jnp.float32)
  return jnp.stack([x, jnp.zeros_like(x)], axis=-1)


def _fill_layer(params, layer, hidden, positions, cache, where=None):
  del params
  values = cache['values']
  batch_size, _, length = values.shape
  positions = jnp.broadcast_to(positions, hidden.shape[:2])
  if where is not None:
    where = where[:, None] if where.ndim == 1 else where
    positions = jnp.where(where, positions, length)
  rows = jnp.arange(batch_size)[:, None]
  values = values.at[rows, layer, positions].set(hidden[..., 0], mode='drop')
  return {**cache, 'values': values}


def _attend(params, layer, hidden, positions, cache, context=None):
  del params, context
  values = cache['values'][:, layer]
  positions = jnp.broadcast_to(positions, hidden.shape[:2])
  before = jnp.arange(values.shape[1]) < positions[..., None]
  attended = jnp.where(before, values[:, None], 0.0).sum(axis=-1)
  ease = jnp.broadcast_to(cache['ease'][:, None], attended.shape)
  return hidden + jnp.stack([attended, ease], axis=-1)


def _feed_forward(params, layer, hidden):
  x = jnp.mod(hidden[..., 0] + params['step'][layer], VOCAB_SIZE)
  return jnp.stack([x, hidden[..., 1]], axis=-1)


def _logits(params, hidden, weights=None):
  del params
  tokens = jnp.arange(VOCAB_SIZE) if weights is None else weights[..., 0]
  sure = jnp.log(jnp.maximum(9.0 * hidden[..., 1:], 1e-6))
  return jnp.where(tokens == hidden[..., :1], sure, 0.0)

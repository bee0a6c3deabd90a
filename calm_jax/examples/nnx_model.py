"""Puts a model written in Flax NNX behind the `LayeredDecoder`.

  python -m calm_jax.examples.nnx_model

A small decoder that has never heard of calm_jax, `Model`, and fifty lines that
take it apart, `as_layered_decoder`: all that the decoder needs, with every exit
rule, certificate and export. The program checks that the full model says what
`Model` says by itself, then lets tokens leave early. Weights are random.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from calm_jax import decoding, exits
from calm_jax.interfaces import LayeredDecoder

VOCAB_SIZE, EMBED_DIM, NUM_LAYERS = 50, 16, 4


def attention(queries, keys, values, mask):
  """One head: queries [B, P, D] over keys and values [B, T, D]."""
  scores = jnp.einsum('bpd,btd->bpt', queries, keys) / EMBED_DIM**0.5
  weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
  return jnp.einsum('bpt,btd->bpd', weights, values)


class Layer(nnx.Module):
  """Self-attention, attention to the source, feed-forward."""

  def __init__(self, rngs: nnx.Rngs):
    linear = functools.partial(nnx.Linear, EMBED_DIM, EMBED_DIM, rngs=rngs)
    self.query, self.key, self.value, self.out = (linear() for _ in range(4))
    self.source_query, self.source_key = linear(), linear()
    self.source_value, self.up, self.down = linear(), linear(), linear()
    self.norm = nnx.RMSNorm(EMBED_DIM, rngs=rngs)

  def attend(self, hidden, self_kv, mask, source_kv, source_mask):
    """Returns [B, P, D] after self- and cross-attention."""
    query = self.query(self.norm(hidden))
    hidden = hidden + self.out(attention(query, *self_kv, mask))
    query = self.source_query(self.norm(hidden))
    return hidden + attention(query, *source_kv, source_mask)

  def feed_forward(self, hidden):
    """Returns [B, P, D] after the FFN."""
    return hidden + self.down(nnx.relu(self.up(self.norm(hidden))))

  def self_kv(self, hidden):
    """Returns keys and values of positions, [B, P, D] each."""
    return self.key(self.norm(hidden)), self.value(self.norm(hidden))

  def source_kv(self, source):
    """Returns keys and values of the source, [B, S, D] each."""
    return self.source_key(source), self.source_value(source)


@nnx.split_rngs(splits=NUM_LAYERS)
@nnx.vmap
def stacked_layers(rngs: nnx.Rngs) -> Layer:
  """Returns all layers as one, whose parameters lead with L."""
  return Layer(rngs)


class Model(nnx.Module):
  """A decoder that attends to the embeddings of its source."""

  def __init__(self, rngs: nnx.Rngs):
    self.table = nnx.Embed(VOCAB_SIZE, EMBED_DIM, rngs=rngs)
    self.positions = nnx.Embed(64, EMBED_DIM, rngs=rngs)
    self.layers = stacked_layers(rngs)
    self.output = nnx.Linear(EMBED_DIM, VOCAB_SIZE, use_bias=False, rngs=rngs)

  def __call__(self, inputs, tokens):
    """Logits [B, T, V] of all positions at once, as in training."""
    source, source_mask = self.table(inputs), (inputs > 0)[:, None]
    places = jnp.arange(tokens.shape[1])
    hidden = self.table(tokens) + self.positions(places)
    mask = places <= places[:, None]
    for index in range(NUM_LAYERS):
      layer = select(self.layers, index)
      hidden = layer.attend(
        hidden,
        layer.self_kv(hidden),
        mask,
        layer.source_kv(source),
        source_mask,
      )
      hidden = layer.feed_forward(hidden)
    return self.output(hidden)


def select(layers, index):
  """Returns one layer of a stack, by a number or a traced one."""
  return jax.tree.map(lambda leaf: leaf[index], layers)


def as_layered_decoder(model: Model) -> tuple[LayeredDecoder, nnx.State]:
  """Takes a model apart: functions, and the parameters they are given."""
  structure, params = nnx.split(model)

  def merged(params):
    return nnx.merge(structure, params)

  def layer_of(params, layer):
    return select(merged(params).layers, layer)

  def start(params, encoded, max_length):
    kv = nnx.vmap(Layer.source_kv, in_axes=(0, None), out_axes=1)
    keys, values = kv(merged(params).layers, encoded['source'])
    batch_size = keys.shape[0]
    empty = jnp.zeros((batch_size, NUM_LAYERS, max_length, EMBED_DIM))
    return {
      'mask': encoded['mask'],
      'source_kv': (keys, values),  # [B, L, S, D]
      'self_kv': (empty, jnp.copy(empty)),  # [B, L, T, D]
    }

  def fill_layer(params, layer, hidden, positions, cache, where=None):
    length = cache['self_kv'][0].shape[2]
    positions = jnp.broadcast_to(positions, hidden.shape[:2])
    if where is not None:
      where = where[:, None] if where.ndim == 1 else where
      positions = jnp.where(where, positions, length)  # dropped
    rows = jnp.arange(hidden.shape[0])[:, None]
    new = layer_of(params, layer).self_kv(hidden)
    filled = (
      old.at[rows, layer, positions].set(values, mode='drop')
      for old, values in zip(cache['self_kv'], new, strict=True)
    )
    return {**cache, 'self_kv': tuple(filled)}

  def attend(params, layer, hidden, positions, cache, context=None):
    del context
    self_kv = [side[:, layer] for side in cache['self_kv']]
    source_kv = [side[:, layer] for side in cache['source_kv']]
    mask = jnp.arange(self_kv[0].shape[1]) <= positions[..., None]
    return layer_of(params, layer).attend(
      hidden, self_kv, mask, source_kv, cache['mask']
    )

  def logits(params, hidden, weights=None):
    if weights is None:
      return merged(params).output(hidden)
    return jnp.einsum('bd,bcd->bc', hidden, weights)

  decoder = LayeredDecoder(
    num_layers=NUM_LAYERS,
    embed_dim=EMBED_DIM,
    vocab_size=VOCAB_SIZE,
    dtype=jnp.dtype('float32'),
    # Stacked layers serve a Python index and a traced one alike.
    prepare=lambda params, traced_layers=True: params,
    encode=lambda params, inputs: {
      'source': merged(params).table(inputs),
      'mask': (inputs > 0)[:, None],
    },
    start=start,
    embed=lambda params, tokens, positions: (
      merged(params).table(tokens) + merged(params).positions(positions)
    ),
    fill_layer=fill_layer,
    attend=attend,
    feed_forward=lambda params, layer, hidden: layer_of(
      params, layer
    ).feed_forward(hidden),
    logits=logits,
    output_rows=lambda params, ids: merged(params).output.kernel.T[ids],
    take_rows=lambda cache, rows: jax.tree.map(lambda leaf: leaf[rows], cache),
  )
  return decoder, params


def greedy(model: Model, inputs, max_length: int):
  """Decodes with the model alone, every position anew: what to compare with."""
  tokens = jnp.zeros((len(inputs), max_length + 1), jnp.int32)
  logits_of = nnx.jit(model)
  for position in range(max_length):
    logits = logits_of(inputs, tokens[:, :-1])[:, position]
    tokens = tokens.at[:, position + 1].set(logits.argmax(axis=-1))
  return tokens[:, 1:]


def main():
  """Decodes with and without exits and prints what came out."""
  model = Model(nnx.Rngs(0))
  # Random weights are never sure of a token; larger ones are.
  model.output.kernel[...] *= 4.0
  inputs = jnp.array([[7, 3, 9, 4], [5, 11, 0, 0]])
  bound = decoding.bind(
    *as_layered_decoder(model),
    depth_loop=decoding.WhileDepthLoop(),  # the quickest to compile
  )
  generate = functools.partial(
    decoding.generate, bound, inputs, max_length=6, eos_id=-1
  )
  full = generate()
  print('the model by itself:', *greedy(model, inputs, 6).tolist())
  print('the full decoder:   ', *full.tokens.tolist())
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
  early = generate(policy=decoding.ComputePolicy(exit_rule=rule))
  print('leaving early:      ', *early.tokens.tolist())
  print('layers of each:     ', *early.exit_layers.tolist())


if __name__ == '__main__':
  main()

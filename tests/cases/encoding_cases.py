"""A tiny T5 of four encoder layers, its sources, and a reference in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from cases import training_cases

from calm_jax import exits, model
from calm_jax.pytrees import register_pytree

B, S, L, D = 6, 5, 4, 16
CONFIG = model.T5Config(
  vocab_size=40,
  embed_dim=D,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=L,
  num_decoder_layers=3,
)
ENCODER = model.as_layered_encoder(CONFIG)


@functools.cache
def inputs():
  """Sources int32 [B, S] of several lengths."""
  drawn = np.random.default_rng(0).integers(2, 40, (B, S))
  lengths = np.array([5, 3, 4, 1, 5, 2])
  return np.where(np.arange(S) < lengths[:, None], drawn, 0).astype(np.int32)


@functools.cache
def params():
  return training_cases.random_params(CONFIG, seed=3)


@functools.cache
def normed():
  """What a decoder would read before each layer and at the end, [L+1, B, S, D].

  Of embeddings first.
  """

  @jax.jit
  def run(params, inputs):
    prepared = ENCODER.prepare(params)
    states = model.encoder_states(CONFIG, params, inputs)
    first, mask = ENCODER.embed(prepared, inputs)
    states = jnp.concatenate([first[None], states])
    return jax.vmap(
      lambda hidden: ENCODER.finish(prepared, hidden, mask).hidden
    )(states)

  return np.asarray(run(params(), inputs()))


@functools.cache
def pooled():
  """The mean states [L+1, B, D] of `normed`."""
  mask = (inputs() > 0)[..., None]
  return (normed() * mask).sum(axis=2) / mask.sum(axis=1)


@functools.cache
def similarities():
  """How alike the pooled states around each layer are, [L, B]."""
  after, before = pooled()[1:], pooled()[:-1]
  lengths = np.linalg.norm(after, axis=-1) * np.linalg.norm(before, axis=-1)
  return np.clip((after * before).sum(axis=-1) / lengths, 0, 1)


@functools.cache
def threshold():
  """One far from all confidences at which rows leave after many depths."""
  values = np.sort(similarities()[1:-1].ravel())
  gaps, middles = np.diff(values), (values[1:] + values[:-1]) / 2

  def worth(place):
    exit_layers, _ = expected_exits(middles[place])
    return len(set(exit_layers)), gaps[place]

  return float(middles[max(range(len(gaps)), key=worth)])


def expected_exits(at):
  """Exit layers [B] of the similarity rule, and confidences there."""
  stops = similarities() >= at
  # It looks from layer 2 on, and the last one ends every row.
  stops[0], stops[-1] = False, True
  exit_layers = stops.argmax(axis=0) + 1
  return exit_layers, similarities()[exit_layers - 1, np.arange(B)]


def similar(at):
  return exits.ConfidenceExit(exits.StateSimilarity(), at)


@register_pytree
@dataclasses.dataclass(frozen=True)
class LinearHeads:
  """A head for each layer: [L, D, C]."""

  kernels: jax.Array

  def __call__(self, pooled, layer):
    return pooled @ self.kernels[layer]


@functools.cache
def heads():
  drawn = np.random.default_rng(1).normal(size=(L, D, 3))
  return LinearHeads(jnp.asarray(drawn, jnp.float32))

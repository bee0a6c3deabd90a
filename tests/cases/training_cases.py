"""A model small enough to compile in seconds, and a task that it can learn."""

import itertools

import jax
import numpy as np

from calm_jax import model

CONFIG = model.T5Config(
  vocab_size=16,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=2,
  dropout_rate=0.1,
)


def batch(seed, *, rows=8, length=5, vocab_size=16):
  """A batch of the copy task: the targets are the inputs, then padding."""
  random = np.random.default_rng(seed)
  tokens = random.integers(2, vocab_size, (rows, length)).astype(np.int32)
  lengths = random.integers(1, length + 1, (rows, 1))
  tokens = np.where(np.arange(length) < lengths, tokens, 0).astype(np.int32)
  return {
    'encoder_input_tokens': tokens,
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': (tokens > 0).astype(np.float32),
  }


def batches(skip):
  """The endless stream of batches after the first `skip`."""
  return (batch(seed) for seed in itertools.count(skip))


def random_params(config, seed=0):
  """Returns random parameters, without compiling a program to draw them."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))

  def draw(shape):
    if len(shape.shape) == 1:
      return np.ones(shape.shape, np.float32)
    scale = 1.0 / np.sqrt(shape.shape[0])
    return (rng.normal(size=shape.shape) * scale).astype(np.float32)

  return jax.device_put(jax.tree.map(draw, shapes))

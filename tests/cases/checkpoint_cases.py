"""Tiny checkpoints for tests: parameters drawn by the table, no compilation."""

import numpy as np

from calm_jax import checkpoints, model
from calm_jax.checkpoints import parameter_names

# No two dimensions that could be mistaken for each other have one size.
V1_1 = model.T5Config(
  vocab_size=20,
  embed_dim=8,
  num_heads=3,
  head_dim=4,
  mlp_dim=10,
  num_encoder_layers=2,
  num_decoder_layers=3,
)
V1_0 = model.T5Config(
  vocab_size=20,
  embed_dim=8,
  num_heads=3,
  head_dim=4,
  mlp_dim=10,
  num_encoder_layers=1,
  num_decoder_layers=2,
  mlp_activations=('relu',),
  tied_embeddings=True,
)
SMALL = model.T5Config(
  vocab_size=20,
  embed_dim=8,
  num_heads=3,
  head_dim=4,
  mlp_dim=10,
  num_encoder_layers=1,
  num_decoder_layers=1,
)


def arrays(config, *, dtype=np.float32):
  """Random parameters by our names; zeros and subnormals among them."""
  random = np.random.default_rng(0)
  drawn = {
    parameter.name: random.normal(size=parameter.shape).astype(dtype)
    for parameter in parameter_names.parameters(config)
  }
  drawn['token_embedder/embedding'][0] = 0
  drawn['encoder/encoder_norm/scale'][:2] = 1e-40, -0.0
  return drawn


def opened(config, *, dtype=np.float32, step=7):
  """The same as an opened checkpoint."""
  tree = parameter_names.nested(arrays(config, dtype=dtype))
  return checkpoints.from_params(tree, config, step=step)


def write(config, folder, form, **options):
  """Writes them in a format and returns the path of the checkpoint."""
  target = checkpoints.Target(format=form, **options)
  return checkpoints.convert(opened(config), folder, target).path


def assert_same_bits(tensors, expected):
  """Compares opened tensors with arrays, dtypes and signs of zero included."""
  assert tensors.keys() == expected.keys()
  for name, array in expected.items():
    found = tensors[name].read()
    assert (found.dtype, found.shape) == (array.dtype, array.shape), name
    assert found.tobytes() == array.tobytes(), name

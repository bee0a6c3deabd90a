"""Loads the arrays that the official CALM release produced on a tiny T5."""

import numpy as np
from tools.paths import GOLDEN

from calm_jax import model

PATH = GOLDEN / 'official_calm_tiny.npz'

CONFIG = model.T5Config(
  vocab_size=160,
  embed_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=64,
  num_encoder_layers=2,
  num_decoder_layers=5,
)


def load():
  """Returns (params under T5X's names, all arrays by key)."""
  arrays = dict(np.load(PATH))
  params = {}
  for key, value in arrays.items():
    if key.startswith('params/'):
      *parents, leaf = key.split('/')[1:]
      node = params
      for name in parents:
        node = node.setdefault(name, {})
      node[leaf] = value
  return params, arrays

"""T5X's networks as ours: configurations and parameters compared.

Reads what it is handed and imports nothing of T5X.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from calm_jax import model, sharding
from calm_jax.array_types import PyTree

# What of a name in T5X's network configuration is called otherwise in ours.
_FIELDS = {
  'embed_dim': 'emb_dim',
  'tied_embeddings': 'logits_via_embedding',
  **{
    name: name
    for name in (
      'vocab_size num_heads head_dim mlp_dim num_encoder_layers'
      ' num_decoder_layers mlp_activations dropout_rate'
    ).split()
  },
}


def config_of(module: Any) -> model.T5Config:
  """Returns our configuration of T5X's network.

  Args:
    module: `t5x.examples.t5.network.Transformer` or one like it.

  Raises:
    ValueError: if it is another kind of network.
  """
  config = getattr(module, 'config', None)
  lacking = [name for name in _FIELDS.values() if not hasattr(config, name)]
  if lacking or getattr(config, 'scan_layers', False):
    why = f'its config lacks {lacking}' if lacking else 'its layers are scanned'
    raise ValueError(
      f'{type(module).__module__}.{type(module).__name__} is no network that '
      f'can exit early ({why}): give t5x.examples.t5.network.Transformer '
      '(python -m calm_jax.cli.convert unstacks checkpoints of scanned layers)'
    )
  return model.T5Config(
    dtype=jnp.dtype(config.dtype).name,
    **{ours: getattr(config, theirs) for ours, theirs in _FIELDS.items()},
  )


def check_same_parameters(params: PyTree, config: model.T5Config) -> None:
  """Raises a ValueError that names the first parameter that differs."""
  ours = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
  expected, found = (
    {
      sharding.path_name(path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (ours, flax.core.unfreeze(params))
  )
  for name in sorted(expected.keys() | found.keys()):
    if expected.get(name) != found.get(name):
      raise ValueError(
        f'the network has {name} of shape {found.get(name)} and calm_jax '
        f'expects {expected.get(name)}: give t5x.examples.t5.network'
      )

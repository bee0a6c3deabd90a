"""The network that T5X's CALM decodes with: Flaxformer's, of this shape."""

import importlib
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from calm_jax import model

_GIN_FILE = 't5x/configs/calm/architectures/calm_t5_1_1_flaxformer.gin'
# What its gin file leaves open or fixes -> ours.
_FIELDS = {
  'NUM_EMBEDDINGS': 'vocab_size',
  'EMBED_DIM': 'embed_dim',
  'NUM_HEADS': 'num_heads',
  'HEAD_DIM': 'head_dim',
  'MLP_DIM': 'mlp_dim',
  'NUM_ENCODER_LAYERS': 'num_encoder_layers',
  'NUM_DECODER_LAYERS': 'num_decoder_layers',
  'ACTIVATION_DTYPE': 'dtype',
  'dense.MlpBlock.activations': 'mlp_activations',
  'relative_position_biases.RelativePositionBiases.num_buckets': (
    'relative_buckets'
  ),
  'relative_position_biases.RelativePositionBiases.max_distance': (
    'relative_max_distance'
  ),
}


def of(config: model.T5Config) -> Any:
  """Returns Flaxformer's network, by the release's gin file.

  Its parts are made when it is applied: gin's bindings have to stay.
  """
  gin = importlib.import_module('gin')
  spec = importlib.util.find_spec('flaxformer')
  folders: Sequence[str] = (spec and spec.submodule_search_locations) or ('',)
  gin.clear_config()
  gin.parse_config_file(str(pathlib.Path(folders[0]) / _GIN_FILE))
  values = {
    **{macro: getattr(config, field) for macro, field in _FIELDS.items()},
    'FIRST_EXIT': 0,
    'EXIT_INTERVAL': 1,
    'RETURN_ALL_LOGITS': False,
  }
  if config.tied_embeddings:
    values['calm_architecture.Decoder.output_logits_factory'] = None
  gin.parse_config([f'{name} = {value!r}' for name, value in values.items()])
  return gin.config.query_parameter('%ARCHITECTURE').scoped_configurable_fn()

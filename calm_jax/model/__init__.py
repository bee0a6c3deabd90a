"""T5 in Flax Linen with T5X's parameter names. It has never heard of exits.

`T5Config` and `init_params` make a model, `layer_states` and `output_logits`
run it teacher forced, `as_layered_decoder` takes it apart for incremental
decoding and `decode_with_layer_mask` is the reference every dynamic depth must
agree with. `truncate` makes a model of some of the decoder's layers.
"""

from calm_jax.model.config import T5Config
from calm_jax.model.stepwise import as_layered_decoder, pool_source
from calm_jax.model.teacher_forcing import (
  decode_with_layer_mask,
  encode,
  init_params,
  layer_states,
  output_logits,
)
from calm_jax.model.transformer import Transformer
from calm_jax.model.truncation import truncate

__all__ = [
  'T5Config',
  'Transformer',
  'as_layered_decoder',
  'decode_with_layer_mask',
  'encode',
  'init_params',
  'layer_states',
  'output_logits',
  'pool_source',
  'truncate',
]

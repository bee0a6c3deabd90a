"""T5 in Flax Linen with T5X's parameter names. It has never heard of exits.

`T5Config` and `init_params` make a model, `layer_states` and `output_logits`
run it teacher forced, `as_layered_decoder` takes it apart for incremental
decoding, `as_layered_encoder` does the same to the encoder, and
`decode_with_layer_mask` is the reference every dynamic depth must agree with.
`truncate` makes a model of some of the decoder's layers.
"""

from calm_jax.model.config import T5Config
from calm_jax.model.encoder_steps import as_layered_encoder, pool_source
from calm_jax.model.stepwise import as_layered_decoder
from calm_jax.model.teacher_forcing import (
  decode_with_layer_mask,
  encode,
  encoder_states,
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
  'as_layered_encoder',
  'decode_with_layer_mask',
  'encode',
  'encoder_states',
  'init_params',
  'layer_states',
  'output_logits',
  'pool_source',
  'truncate',
]

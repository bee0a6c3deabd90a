"""Bytes of the weights that decoding reads, in float or in 8 bits."""

from collections.abc import Sequence

from calm_jax.model import T5Config, int8_params
from calm_jax.quantisation import Int8Weights

# Bytes of a float32 scale: each output channel of a matrix in 8 bits has one.
_SCALE = 4
_SELF, _CROSS = 'self_attention', 'encoder_decoder_attention'


class WeightBytes:
  """Bytes of the parts of a model; those of layers are the mean of all layers.

  A number of a matrix in 8 bits is one byte, and its scales come on top; all
  others are of the activation dtype.

  Attributes:
    projections: queries and outputs of both attentions of a decoder layer.
    mlp: the feed-forward block of a decoder layer.
    self_kv: keys and values of a decoder layer's self-attention.
    cross_kv: those of its cross-attention.
    encoder: all layers of the encoder.
    head: the output matrix.
    head_row: one row of it.
  """

  def __init__(self, config: T5Config, weights: Int8Weights | None):
    self._config, self._weights = config, weights
    sides = ('query', 'out')
    self.projections = self._mean(
      [f'{attention}/{side}' for attention in (_SELF, _CROSS) for side in sides]
    )
    self.self_kv = self._mean([f'{_SELF}/key', f'{_SELF}/value'])
    self.cross_kv = self._mean([f'{_CROSS}/key', f'{_CROSS}/value'])
    gates = len(config.mlp_activations)
    mlp = (
      [f'mlp/wi_{gate}' for gate in range(gates)] if gates > 1 else ['mlp/wi']
    )
    mlp.append('mlp/wo')
    self.mlp = self._mean(mlp)
    encoder = [f'attention/{name}' for name in ('query', 'key', 'value', 'out')]
    self.encoder = sum(self._layers('encoder', [*encoder, *mlp]))
    output = (int8_params.OUTPUT, config.embed_dim)
    self.head = self._bytes(*output, config.vocab_size)
    self.head_row = self._bytes(*output, 1)

  def _mean(self, names: Sequence[str]) -> float:
    """Returns what matrices of a decoder layer have, of the mean layer."""
    layers = self._layers('decoder', names)
    return sum(layers) / len(layers)

  def _layers(self, stack: str, names: Sequence[str]) -> list[int]:
    """Returns what matrices of these names have, layer by layer."""
    count = getattr(self._config, f'num_{stack}_layers')
    return [
      sum(
        self._bytes(f'{stack}/layers_{layer}/{name}', *self._size(name))
        for name in names
      )
      for layer in range(count)
    ]

  def _size(self, name: str) -> tuple[int, int]:
    """Returns the inputs and outputs of a matrix of a layer."""
    config = self._config
    width = config.mlp_dim
    if not name.startswith('mlp/'):
      width = config.num_heads * config.head_dim
    inwards = name.endswith(('/out', '/wo'))
    return (width, config.embed_dim) if inwards else (config.embed_dim, width)

  def _bytes(self, path: str, inputs: int, outputs: int) -> int:
    if self._weights is not None and self._weights.takes(path):
      return (inputs + _SCALE) * outputs
    return inputs * outputs * self._config.activation_dtype.itemsize

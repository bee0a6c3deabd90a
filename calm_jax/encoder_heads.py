"""Heads that classify an input by the states of an encoder layer.

One for every encoder layer, which reads the mean of the layer's states over the
tokens of the input, after the encoder's final norm (T5 has no token that stands
for the whole). Their weights are trained by `training.encoder_head_stage`;
`encoding.classify` stops at the first layer whose head is sure.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredEncoder
from calm_jax.pytrees import register_pytree

_REMEDY = 'give the heads trained with this model'


@register_pytree
@dataclasses.dataclass(frozen=True)
class EncoderHeads:
  """Logits of C classes after every encoder layer, in float32.

    logits = pooled . kernel + bias, or with a hidden layer of U units
    logits = gelu(pooled . kernel + hidden_bias) . out + bias

  Attributes:
    kernel: [L, D, C], or [L, D, U] with a hidden layer.
    bias: [L, C].
    hidden_bias: [L, U]; None, as `out`, without a hidden layer.
    out: [L, U, C].
  """

  kernel: Array
  bias: Array
  hidden_bias: Array | None = None
  out: Array | None = None

  @property
  def num_layers(self) -> int:
    """L, of the encoder they are for."""
    return self.bias.shape[0]

  @property
  def num_classes(self) -> int:
    """C."""
    return self.bias.shape[1]

  def check(self, encoder: LayeredEncoder) -> 'EncoderHeads':
    """Returns itself in float32.

    Args:
      encoder: whose layers they are to read.

    Raises:
      ValueError: for shapes that do not fit together, or the encoder, or a
        number that is none.
    """
    found = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    given = {name: a for name, a in found.items() if a is not None}
    shapes = {name: np.shape(array) for name, array in given.items()}
    layers, size = encoder.num_layers, encoder.embed_dim
    classes = shapes['bias'][-1:]
    wanted = {'kernel': (layers, size, *classes), 'bias': (layers, *classes)}
    if self.hidden_bias is not None or self.out is not None:
      units = shapes['kernel'][-1:]
      wanted['kernel'] = (layers, size, *units)
      wanted['hidden_bias'] = (layers, *units)
      wanted['out'] = (layers, *units, *classes)
    if shapes != wanted:
      raise ValueError(
        f'the encoder heads have shapes {_words(shapes)}; for this encoder of '
        f'{layers} layers and width {size} they are {_words(wanted)}: {_REMEDY}'
      )
    return EncoderHeads(
      **{
        name: checks.checked_array(
          array,
          f'{name} of the encoder heads',
          shapes=(shapes[name],),
          remedy=_REMEDY,
        )
        for name, array in given.items()
      }
    )

  def __call__(self, pooled: Array, layer: Array | int) -> Array:
    """Returns the logits float32 [B, C] of the head of one layer.

    Args:
      pooled: [B, D], mean normed states after it.
      layer: 0..L-1, traced or not.
    """
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[layer], self)
    return own.of_layer(pooled)

  def of_layer(self, pooled: Array) -> Array:
    """Returns logits [B, C]; the arrays are one layer's, without their first.

    Args:
      pooled: [B, D].
    """
    inner = _product(pooled.astype(jnp.float32), self.kernel)
    if self.out is not None and self.hidden_bias is not None:
      inner = _product(jax.nn.gelu(inner + self.hidden_bias), self.out)
    return inner + self.bias

  def all_logits(self, pooled: Array) -> Array:
    """Returns the logits of all layers, float32 [L, B, C].

    Args:
      pooled: [L, B, D].
    """
    return jax.vmap(EncoderHeads.of_layer)(self, pooled)


def _product(states: Array, kernel: Array) -> Array:
  """Returns states . kernel in full float32 on every backend."""
  return jnp.matmul(states, kernel, precision=jax.lax.Precision.HIGHEST)


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
  return ', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())

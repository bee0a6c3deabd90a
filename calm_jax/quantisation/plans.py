"""Which matrices of a model are decoded with in 8 bits."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from calm_jax.quantisation.int8_matrices import Int8Matrix


@dataclasses.dataclass(frozen=True)
class Int8Weights:
  """The matrices of the decoder in 8 bits, a quarter of float32's bytes.

  Projections of self- and cross-attention, feed-forward blocks and the output
  matrix; the input table, norms and position biases stay as they are, softmax
  and residuals are float.

  Attributes:
    encoder: whether the encoder's matrices are, too. It runs once per request,
      many positions at once.
    keep: regular expressions; matrices whose whole path one of them matches
      stay in float: r'.*/mlp/wo', or r'decoder/layers_0/.*'. Paths are those of
      `parameters.txt` of a run, without the last part; the output matrix is
      'decoder/logits_dense', of a tied model as well.
  """

  encoder: bool = False
  keep: tuple[str, ...] = ()

  def takes(self, path: str) -> bool:
    """Whether the matrix at a path is brought to 8 bits."""
    if path.startswith('encoder/') and not self.encoder:
      return False
    return not any(re.fullmatch(pattern, path) for pattern in self.keep)

  def describe(self) -> dict[str, Any]:
    """Returns what it is, as plain JSON values, for certificates."""
    return {
      'type': 'int8',
      **({'encoder': True} if self.encoder else {}),
      **({'keep': sorted(self.keep)} if self.keep else {}),
    }


def as_weights(weights: Any) -> Int8Weights | None:
  """Returns how weights are kept: None for float, as they come.

  Args:
    weights: None or 'float', 'int8', an `Int8Weights`, or what one described.

  Raises:
    ValueError: for anything else, or an expression that is none.
  """
  if weights is None or weights == 'float':
    return None
  if weights == 'int8':
    weights = Int8Weights()
  if isinstance(weights, Mapping) and weights.get('type') == 'int8':
    keep = tuple(weights.get('keep', ()))
    weights = Int8Weights(encoder=weights.get('encoder', False), keep=keep)
  if not isinstance(weights, Int8Weights):
    raise ValueError(
      f"weights is {weights!r}; give 'float', 'int8' or "
      'quantisation.Int8Weights(...)'
    )
  if isinstance(weights.keep, str):
    raise ValueError(
      f'keep is {weights.keep!r}; give a tuple of expressions: '
      f'({weights.keep!r},)'
    )
  for pattern in weights.keep:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f'keep holds {pattern!r}, which is no regular expression: {error}'
      ) from None
  return dataclasses.replace(weights, keep=tuple(weights.keep))


def describe_weights(weights: Int8Weights | None) -> Any:
  """Returns what is written down of weights: 'float', or a description."""
  return 'float' if weights is None else weights.describe()


def is_quantised(node: Any) -> bool:
  """Whether a node of a parameter tree is a matrix in 8 bits."""
  return isinstance(node, Int8Matrix)

"""Gates of a decoder's own past: what they compute, in training and decoding.

In every decoder layer a later token says of each earlier one whether it is
still worth reading: Dynamic Context Pruning (arXiv 2305.15805). Trained by
`training.context_gate_stage` for one frozen model; `decoding.PrunedContext`
drops, layer by layer, the cached positions whose gates have shut.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exit_adapters import norm
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

_EXACT = jax.lax.Precision.HIGHEST


@register_pytree
@dataclasses.dataclass(frozen=True)
class ContextGates:
  """Two maps of R numbers and a bias for every decoder layer.

  The token at i says of the one at j < i: x = q_i . k_j / sqrt(R) + bias, with
  q and k products of the states that ENTER the layer, state / rms(state), in
  float32. Where x is not above 0 it drops j, in this layer and for good.

  Attributes:
    queries: [L, D, R].
    keys: [L, D, R].
    bias: [L], beta of the paper.
  """

  queries: Array
  keys: Array
  bias: Array

  @property
  def size(self) -> int:
    """R."""
    return self.queries.shape[-1]

  @property
  def products(self) -> int:
    """Products with D weights that a state takes per layer, for the ledger."""
    return 2 * self.size

  def check(self, decoder: LayeredDecoder) -> 'ContextGates':
    """Returns itself in float32.

    Raises:
      ValueError: for shapes that do not fit together, or the decoder, or a
        number that is none.
    """
    layers, width = decoder.num_layers, decoder.embed_dim
    queries, keys, bias = map(np.shape, (self.queries, self.keys, self.bias))
    size = queries[-1] if queries else 0
    matrix = (layers, width, size)
    if (queries, keys, bias) != (matrix, matrix, (layers,)) or not size:
      raise ValueError(
        f'the context gates have shapes queries {list(queries)}, keys '
        f'{list(keys)} and bias {list(bias)}; for this decoder of {layers} '
        f'layers they are [{layers}, {width}, R] twice, R at least 1, and '
        f'[{layers}]: give those trained with it'
      )
    return ContextGates(
      **{
        field.name: checks.checked_array(
          getattr(self, field.name),
          f'{field.name} of the context gates',
          shapes=(np.shape(getattr(self, field.name)),),
          remedy='give those trained with this model',
        )
        for field in dataclasses.fields(self)
      }
    )

  def project(self, hidden: Array, layer: Array | int) -> tuple[Array, Array]:
    """Returns queries and keys, float32 [..., R] each, of states [..., D].

    Args:
      hidden: what enters the layer.
      layer: 0..L-1, traced or not.
    """
    normed = norm(hidden.astype(jnp.float32))[0]
    query, key = (
      jnp.matmul(normed, jnp.asarray(side)[layer], precision=_EXACT)
      for side in (self.queries, self.keys)
    )
    return query, key

  def scores(self, query: Array, keys: Array, layer: Array | int) -> Array:
    """Returns x float32 [..., P, C] of queries [..., P, R], keys [..., C, R].

    Args:
      query: of the later tokens.
      keys: of the earlier ones.
      layer: 0..L-1, traced or not.
    """
    products = jnp.einsum('...pr,...cr->...pc', query, keys, precision=_EXACT)
    return products / np.sqrt(self.size) + jnp.asarray(self.bias)[layer]

"""Exit layers: an adapter per exit that is half of a decoder layer.

The half that sees one position: norm, gated feed-forward, residual. The other
half, attention, is not for a readout, which is given the state of the present
position alone; see `training/README.md`. Sources: Balcony (arXiv 2503.05005)
and DEED (arXiv 2311.08623) put whole layers before the head; the feed-forward
is T5 v1.1's (arXiv 2002.05202), for a model of T5 1.0, too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from calm_jax.array_types import Array
from calm_jax.exit_adapters import AdaptsExits, ExitAdapters, checked, norm
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class ExitLayers(AdaptsExits):
  """A feed-forward layer for every exit before the last layer.

  adapted = state * scale + rms(state) * ((gelu(n . gates[0]) * n . gates[1]) .
  out), with n = state / rms(state): T5's layer, but that what it adds has the
  state's own size, which the head's norm takes away from both. (The scale of
  its norm is a part of `gates`.) With a scale of ones and `out` of zeros it is
  the state itself, and so it is of the last layer, whatever the weights, to the
  bit.

  Attributes:
    scale: [L-1, D].
    gates: [L-1, D, 2, F], in one array as `model.join_gates` has them.
    out: [L-1, F, D].
  """

  scale: Array
  gates: Array
  out: Array

  @property
  def hidden_units(self) -> int:
    """F."""
    return self.out.shape[1]

  @property
  def products(self) -> int:
    """Products with D weights that a state takes, for the ledger."""
    return 1 + 3 * self.hidden_units

  def check(self, decoder: LayeredDecoder) -> 'ExitLayers':
    """Returns itself, its matrices in the decoder's dtype.

    Raises:
      ValueError: for shapes that do not fit together, or the decoder.
    """
    scale, gates, out = map(np.shape, (self.scale, self.gates, self.out))
    exits, size = decoder.num_layers - 1, decoder.embed_dim
    units = gates[-1] if gates else 0
    wanted = (exits, size), (exits, size, 2, units), (exits, units, size)
    if (scale, gates, out) != wanted or not exits or not units:
      raise ValueError(
        f'the exit layers have shapes scale {list(scale)}, gates {list(gates)} '
        f'and out {list(out)}; for this decoder of {decoder.num_layers} layers '
        f'they are [{exits}, {size}], [{exits}, {size}, 2, F] and [{exits}, F, '
        f'{size}], F at least 1: give those trained with it'
      )
    return ExitLayers(
      checked(self.scale, 'scale'),
      checked(self.gates, 'gates').astype(decoder.dtype),
      checked(self.out, 'out').astype(decoder.dtype),
    )

  def adapt(self, hidden: Array) -> Array:
    """Returns states [..., D] of one exit adapted, in their dtype."""
    states = hidden.astype(jnp.float32)
    normed, size = norm(states)
    inner = jnp.einsum(
      '...d,dgf->...gf', normed.astype(self.gates.dtype), self.gates
    )
    product = jax.nn.gelu(inner[..., 0, :]) * inner[..., 1, :]
    adapted = states * self.scale + size * (product @ self.out)
    return adapted.astype(hidden.dtype)

  def of_rows(self, hidden: Array, layer: Array) -> Array:
    """Returns the states [B, D] adapted, one exit after the other.

    Matrices of an exit that no row left by are not read, and none are copied
    once per row.
    """

    def read(number, adapted):
      mine = layer == number
      return lax.cond(
        mine.any(),
        lambda: jnp.where(mine[:, None], self.of_exit(hidden, number), adapted),
        lambda: adapted,
      )

    return lax.fori_loop(0, self.num_layers - 1, read, hidden)


def adapters_of(**arrays: Array) -> AdaptsExits:
  """Returns the adapters, of whichever kind, that arrays of these names make.

  Raises:
    TypeError: for names that make none.
  """
  return (ExitLayers if 'gates' in arrays else ExitAdapters)(**arrays)

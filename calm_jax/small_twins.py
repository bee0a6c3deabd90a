"""Small twins: a narrow feed-forward block beside each one of a decoder.

Duo-LLM (arXiv 2410.10846) puts a block of few hidden units beside every
feed-forward block and trains both with random choices between them, so that
either may run in any layer, for any token. Here the model stays as it is: its
twins are a part of their own, trained by `training.twin_stage` to stand in for
its blocks, and `decoding.ChosenFeedForward` says which of the two runs. The
form of a twin is T5 v1.1's (arXiv 2002.05202), for a model of T5 1.0, too.
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

# What may run in place of a feed-forward block: nothing, itself, its twin.
NONE, OWN, TWIN = 0, 1, 2
OPTIONS = 3


@register_pytree
@dataclasses.dataclass(frozen=True)
class SmallTwins:
  """A feed-forward block of U hidden units for every decoder layer.

  after = state + (gelu(n . gates[0]) * n . gates[1]) . out, with n = state /
  rms(state) * scale. With `out` of zeros it is the state itself.

  Attributes:
    scale: [L, D], of the norm.
    gates: [L, D, 2, U], in one array as `model.join_gates` has them.
    out: [L, U, D].
  """

  scale: Array
  gates: Array
  out: Array

  @property
  def num_layers(self) -> int:
    """L, of the decoder they are for."""
    return self.scale.shape[0]

  @property
  def hidden_units(self) -> int:
    """U."""
    return self.out.shape[1]

  @property
  def products(self) -> int:
    """Products with D weights that a state takes, for the ledger."""
    return 3 * self.hidden_units

  def check(self, decoder: LayeredDecoder) -> 'SmallTwins':
    """Returns itself with JAX arrays, its matrices in the decoder's dtype.

    Raises:
      ValueError: for shapes that do not fit together, or the decoder.
    """
    scale, gates, out = map(np.shape, (self.scale, self.gates, self.out))
    layers, size = decoder.num_layers, decoder.embed_dim
    units = gates[-1] if gates else 0
    wanted = (layers, size), (layers, size, 2, units), (layers, units, size)
    if (scale, gates, out) != wanted or not units:
      raise ValueError(
        f'the small twins have shapes scale {list(scale)}, gates {list(gates)} '
        f'and out {list(out)}; for this decoder of {layers} layers they are '
        f'[{layers}, {size}], [{layers}, {size}, 2, U] and [{layers}, U, '
        f'{size}], U at least 1: give those trained with it'
      )
    return SmallTwins(
      _checked(self.scale, 'scale'),
      _checked(self.gates, 'gates').astype(decoder.dtype),
      _checked(self.out, 'out').astype(decoder.dtype),
    )

  def __call__(self, hidden: Array, layer: Array | int) -> Array:
    """Returns states [..., D] after the twin of a layer, in their dtype.

    Args:
      hidden: [..., D], what enters the layer's feed-forward block.
      layer: 0..L-1, traced or not.
    """
    scale, gates, out = (
      jnp.asarray(leaf)[layer] for leaf in (self.scale, self.gates, self.out)
    )
    normed = norm(hidden.astype(jnp.float32))[0] * scale
    inner = jnp.einsum('...d,dgu->...gu', normed.astype(gates.dtype), gates)
    product = jax.nn.gelu(inner[..., 0, :]) * inner[..., 1, :]
    return hidden + (product @ out).astype(hidden.dtype)


def check_choices(choices: tuple[int, ...], num_layers: int, name: str) -> None:
  """Checks what runs in each layer: 0 nothing, 1 its own block, 2 its twin.

  Args:
    choices: [L].
    num_layers: L.
    name: what errors call them.

  Raises:
    ValueError: for another number of choices than L, or another choice.
  """
  if not isinstance(choices, tuple) or len(choices) != num_layers:
    raise ValueError(
      f'{name} is {choices!r}; give one for each of the {num_layers} layers: 0 '
      'for no feed-forward, 1 for the own one, 2 for its twin, such as '
      f'{(OWN,) * num_layers}'
    )
  for layer, choice in enumerate(choices):
    checks.check_whole(
      choice, f'{name} at layer {layer} (0 none, 1 own, 2 twin)', low=0, high=2
    )


def _checked(given: Array, name: str) -> Array:
  """Returns an array as float32; raises ValueError if a number is none."""
  return checks.checked_array(
    given,
    f'{name} of the small twins',
    shapes=(np.shape(given),),
    remedy='give those trained with this model',
  )

"""A draft head: what it computes, in training and while decoding.

A light part beside a decoder that guesses the state in which the next token
would leave the last layer, from such a state and the last tokens. The
decoder's own output matrix reads the guess, so that the head needs no
vocabulary of its own, and the guess stands in for the state at the token after
it (EAGLE, arXiv 2401.15077; Hydra, arXiv 2402.05109). That it sees the last
tokens beside a state of all that came before is Chimera's (arXiv 2402.15758).
Its weights are trained by `training.draft_head_stage`; `decoding.DraftAhead`
drafts with it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder
from calm_jax.pytrees import register_pytree

_EPSILON = 1e-6


@register_pytree
@dataclasses.dataclass(frozen=True)
class DraftHead:
  """One hidden layer from a state and the last n tokens to the next state.

  next = norm(state) + gelu(sum of norm(part) . entry[part] + bias) . back, with
  the state and the n embeddings as parts and norm(x) = x / rms(x). It ends in
  the decoder's final norm, so the size of a state says nothing.

  Attributes:
    entry: [1 + n, D, H], of the state and of the last tokens, latest first.
    bias: [H].
    back: [H, D].
  """

  entry: Array
  bias: Array
  back: Array

  @property
  def num_tokens(self) -> int:
    """How many of the last tokens it sees, n."""
    return self.entry.shape[0] - 1

  @property
  def products(self) -> int:
    """Products with D weights that a draft takes, for the ledger."""
    parts, _, width = self.entry.shape
    return (parts + 1) * width

  def check(self, decoder: LayeredDecoder) -> 'DraftHead':
    """Returns itself, its matrices in the decoder's dtype.

    Raises:
      ValueError: for shapes that do not fit together, or the decoder.
    """
    entry, bias, back = map(np.shape, (self.entry, self.bias, self.back))
    size = decoder.embed_dim
    fits = len(entry) == 3 and entry[0] > 1 and entry[1] == size
    if not fits or bias != entry[2:] or back != (*bias, size):
      raise ValueError(
        f'the draft head has shapes entry {list(entry)}, bias {list(bias)} and '
        f'back {list(back)}; for this decoder they are [1 + n, {size}, H], [H] '
        f'and [H, {size}], n at least 1: give the head trained with it'
      )
    checked = (
      checks.checked_array(
        getattr(self, field.name),
        f'{field.name} of the draft head',
        shapes=(shape,),
        remedy='give the head trained with this model',
      ).astype(decoder.dtype)
      for field, shape in zip(
        dataclasses.fields(self), (entry, bias, back), strict=True
      )
    )
    return DraftHead(*checked)

  def __call__(self, state: Array, embeddings: Array) -> Array:
    """Returns the guessed state [..., D].

    Args:
      state: [..., D], of the last token before, after the last layer.
      embeddings: [..., n, D], of the last tokens, latest first.
    """
    dtype = self.entry.dtype
    parts = jnp.concatenate([state[..., None, :], embeddings], axis=-2)
    parts = _norm(parts).astype(dtype)
    flat = parts.reshape(*state.shape[:-1], -1)
    inner = flat @ self.entry.reshape(-1, self.entry.shape[2]) + self.bias
    return parts[..., 0, :] + jax.nn.gelu(inner) @ self.back


def _norm(states: Array) -> Array:
  """Returns states over their root mean square, float32."""
  states = states.astype(jnp.float32)
  squares = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
  return states * jax.lax.rsqrt(squares + _EPSILON)

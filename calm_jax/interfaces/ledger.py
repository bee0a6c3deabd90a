"""The ledger: what was computed, counted where it was done.

Nobody works out costs from exit layers afterwards: loops, fills and readouts
count what they do, token by token, and whoever asks what a decode cost, of any
policy, reads that.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Work:
  """What was computed while a token was decoded, whatever it was computed for.

  Each is int32 [B] of one position, or [B, T]; 0 where nothing was decoded.

  Attributes:
    attention: layers whose attention sub-layers ran for the token itself.
    feed_forward: layers whose FFN did.
    caught_up: layers that ran for earlier positions, beside it or before it.
    fills: layers whose K/V projections were used, of self-attention.
    projections: keys and values made by them: positions summed over layers.
    checks: times that its states were read out into logits.
    outputs: logits computed by these, each the product with a row of the output
      matrix.
    extra_products: further products of that kind, of a state with D weights, in
      parts that the decoder does not have, such as a draft head.
    cycles: 1 where drafts were checked at this position, else 0.
    verified: how many were.
    accepted: how many of them agreed with the full model and stayed.
  """

  attention: Array
  feed_forward: Array
  caught_up: Array
  fills: Array
  projections: Array
  checks: Array
  outputs: Array
  extra_products: Array
  cycles: Array
  verified: Array
  accepted: Array

  @classmethod
  def none(cls, shape: tuple[int, ...]) -> 'Work':
    """Returns a ledger of zeros."""
    # An array each: a buffer could not be donated twice.
    names = (field.name for field in dataclasses.fields(cls))
    return cls(**{name: jnp.zeros(shape, jnp.int32) for name in names})

  def plus(self, **done: Array) -> 'Work':
    """Returns the ledger with int32 [B] added to some of its columns."""
    sums = {name: getattr(self, name) + more for name, more in done.items()}
    return dataclasses.replace(self, **sums)

  def sum(self) -> 'Work':
    """Returns the sums over all rows and positions, a number each."""
    return jax.tree.map(lambda leaf: leaf.sum(), self)


class FillWork(NamedTuple):
  """What a cache fill did for one layer.

  Attributes:
    projections: int32 [B], positions of which it made keys and values.
    caught_up: int32 [B], earlier positions that run the layer now, or did
      already; None for none.
  """

  projections: Array
  caught_up: Array | None = None

"""What drafts ahead of the full model: a trained head, or its first layers.

A drafter makes the states that are read as drafts, one position after the
other. What it writes into the cache is no K/V of the full model: the check runs
every draft through all layers, from its embedding on, and writes them anew.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import companions as company
from calm_jax.decoding.states import Carry
from calm_jax.draft_heads import DraftHead
from calm_jax.interfaces import BoundDecoder, LayeredDecoder
from calm_jax.pytrees import register_pytree
from calm_jax.quantisation import describe_weights


class Guess(NamedTuple):
  """States that are read as drafts.

  Attributes:
    hidden: [R, D], the states.
    bound: reads them out.
    entering: [R, 1, D], the embeddings at the present positions.
    cache: the cache, if the drafter writes into it.
    work: columns of the ledger, [R] each.
  """

  hidden: Array
  bound: BoundDecoder
  entering: Array
  cache: PyTree
  work: Mapping[str, Array]


class Drafter(Protocol):
  """Drafts for rows, from their last checked token on.

  `uses_cache` says whether it reads and writes the cache.
  """

  uses_cache: ClassVar[bool]

  def first_states(self, carry: Carry) -> tuple[Array, Array]:
    """Returns states [R, D] to draft from, and which rows can, bool [R]."""
    ...

  def guess(self, bound: BoundDecoder, states: Array, carry: Carry) -> Guess:
    """Returns the states at the present positions of rows that are alive.

    Args:
      bound: the decoder with its parameters.
      states: [R, D], those of the positions before.
      carry: the decode; its cache is None where `uses_cache` is false.
    """
    ...


@dataclasses.dataclass(frozen=True)
class OfHead:
  """Drafts with a head: no layer runs, and the first token cannot be drafted.

  Attributes:
    head: the head.
  """

  head: DraftHead
  uses_cache: ClassVar[bool] = False

  def first_states(self, carry: Carry) -> tuple[Array, Array]:
    """Returns the last layer's states at the last checked tokens."""
    assert carry.drafts is not None, 'start made them'
    verified = carry.drafts.verified
    states = company.cut(
      carry.policy.cache_fill.hidden, jnp.maximum(verified - 1, 0), 1
    )
    return states[:, 0], verified > 0

  def guess(self, bound: BoundDecoder, states: Array, carry: Carry) -> Guess:
    """Returns what the head makes of states and the last tokens."""
    # Positions of the last tokens as the decoder reads them, latest first.
    recent = carry.positions[:, None] - jnp.arange(self.head.num_tokens)
    places = jnp.maximum(recent - 1, 0)
    tokens = jnp.take_along_axis(carry.tokens, places, axis=1)
    tokens = jnp.where(recent > 0, tokens, 0)
    embeddings = bound.embed(tokens, jnp.maximum(recent, 0))
    return Guess(
      hidden=self.head(states, embeddings).astype(states.dtype),
      bound=bound,
      entering=embeddings[:, :1],
      cache=None,
      work={'extra_products': carry.alive * self.head.products},
    )


@register_pytree
@dataclasses.dataclass(frozen=True)
class FirstLayers:
  """Drafts with the first layers of the decoder, in 8 bits.

  They read a quarter of the bytes that the decoder's own would, and what they
  get wrong the check puts right. Made once of the model as it is bound in 8
  bits:

    in_8_bits = decoding.bind(decoder, params, weights='int8')
    verification = decoding.DraftAhead(decoding.FirstLayers(in_8_bits, 3))

  Attributes:
    bound: the same decoder, bound to the same depth loop in other weights.
    layers: how many layers a draft runs, 1..L.
  """

  bound: BoundDecoder
  layers: int = dataclasses.field(default=2, metadata=dict(static=True))

  uses_cache: ClassVar[bool] = True

  def check(self, decoder: LayeredDecoder) -> Self:
    """Returns itself.

    Raises:
      ValueError: for another decoder than the one that checks.
    """
    if self.bound.decoder != decoder:
      raise ValueError(
        'the layers of FirstLayers are of another decoder; bind the one that '
        "checks its drafts, in 8 bits: decoding.bind(decoder, params, weights='"
        "int8')"
      )
    checks.check_whole(
      self.layers, 'layers of FirstLayers', low=1, high=decoder.num_layers
    )
    return self

  def describe(self) -> dict[str, Any]:
    """Returns its numbers, for `decoding.describe`."""
    return {
      'type': type(self).__name__,
      'layers': self.layers,
      'weights': describe_weights(self.bound.weights),
    }

  def first_states(self, carry: Carry) -> tuple[Array, Array]:
    """Returns no states: it drafts from the last token alone, any of them."""
    shape = (carry.alive.shape[0], self.bound.decoder.embed_dim)
    return jnp.zeros(shape, self.bound.decoder.dtype), carry.alive

  def guess(self, bound: BoundDecoder, states: Array, carry: Carry) -> Guess:
    """Returns the states after the first layers."""
    del states
    positions = carry.positions[:, None]
    entering = bound.embed(carry.previous_tokens[:, None], positions)
    hidden, cache, mine = entering, carry.cache, self.bound
    for layer in range(self.layers):
      cache = mine.fill_layer(layer, hidden, positions, cache, carry.alive)
      hidden = mine.attend(layer, hidden, positions, cache)
      hidden = mine.feed_forward(layer, hidden)
    ran = carry.alive * self.layers
    return Guess(
      hidden=hidden[:, 0],
      bound=mine,
      entering=entering,
      cache=cache,
      work=dict(attention=ran, feed_forward=ran, fills=ran, projections=ran),
    )


def drafter_of(head: Any) -> Drafter:
  """Returns what drafts in the slot of a head."""
  return OfHead(head) if hasattr(head, 'products') else head

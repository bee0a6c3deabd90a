"""Pruned context: cached positions that later tokens drop, layer by layer.

Dynamic Context Pruning (arXiv 2305.15805) on a decoder's own past. The cache of
a layer has C places; a token scores what lies in them, drops what is no longer
worth reading, and its own keys and values go to a place that is free.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.context_gates import ContextGates
from calm_jax.interfaces import (
  CachedPositions,
  LayeredDecoder,
  LayerWork,
  PlansAhead,
  PlanView,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class PrunedContext(PlansAhead):
  """Reads, in every layer, the past tokens that no later one has dropped.

  The token at i drops the one at j where x_ij + beta_shift <= 0, the method's
  alpha = infinity; in this layer and for good, and never itself. A row that has
  stopped drops by its exit state, of which the K/V are made as well. Without a
  free place the position of the lowest x is evicted and counted as overflow
  (`decoding.context_use`).

  With room for T and beta_shift = infinity it is the unpruned model to the bit.

  Attributes:
    gates: trained for the model (`runs.load_context_gates`).
    slots: C, at least 1; caches have room for so many positions per layer, or T
      if that is less. None for T.
    beta_shift: float32 [], added to every x: a higher one drops less by it;
      infinity nothing.
  """

  gates: ContextGates
  slots: int | None = dataclasses.field(
    default=None, metadata=dict(static=True)
  )
  beta_shift: Array | float = 0.0

  prunes_context = True
  may_skip_for_all = False

  @property
  def products(self) -> int:
    """Products with D weights that a state takes per layer."""
    return self.gates.products

  def room(self, max_length: int) -> int:
    """Returns C."""
    return max_length if self.slots is None else min(self.slots, max_length)

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'PrunedContext':
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    del batch_size, max_length
    if not decoder.accepts_context:
      raise ValueError(
        'PrunedContext has K/V lie in other places than their positions, and '
        'this decoder does not say accepts_context: let its attend take '
        'CachedPositions, or take decoding.EveryLayer()'
      )
    checks.check_no_class(self.gates, 'gates')
    if not isinstance(self.gates, ContextGates):
      raise ValueError(
        f'gates of PrunedContext is {self.gates!r}; give ContextGates, such as '
        'runs.load_context_gates(model_dir)'
      )
    slots = self.slots
    if slots is not None:
      checks.check_whole(slots, 'slots of PrunedContext', low=1)
      # A plain int, so that one from NumPy or gin compiles nothing anew.
      slots = int(slots)
    beta_shift = checks.checked_array(
      self.beta_shift,
      'beta_shift of PrunedContext',
      low=-jnp.inf,
      high=jnp.inf,
      remedy='give a number to add to scores, float("inf") to drop nothing',
    )
    return PrunedContext(self.gates.check(decoder), slots, beta_shift)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'HeldContext':
    """Returns places that are all free."""
    layers = batch_size, decoder.num_layers
    places = *layers, self.room(max_length)
    return HeldContext(
      keys=jnp.zeros((*places, self.gates.size), jnp.float32),
      positions=jnp.full(places, -1, jnp.int32),
      most=jnp.zeros(layers, jnp.int32),
      overflow=jnp.zeros(layers, jnp.int32),
    )

  def before(
    self, state: 'HeldContext', view: PlanView
  ) -> tuple['HeldContext', LayerWork]:
    """Drops what the token has no use for, and gives it a place."""
    layer, rows = view.layer, jnp.arange(view.alive.shape[0])
    query, key = self.gates.project(view.hidden, layer)
    scores = self.gates.scores(query[:, None], state.keys[:, layer], layer)
    held, scores = state.positions[:, layer], scores[:, 0]
    live = (held >= 0) & (scores + self.beta_shift > 0)
    # The first free place if there is one, else that of the lowest score.
    slot = jnp.where(live, scores, -jnp.inf).argmin(axis=1).astype(jnp.int32)
    now = jnp.where(live, held, -1).at[rows, slot].set(view.positions)
    alive = view.alive
    return HeldContext(
      # Nothing is written to a place behind the last one.
      keys=state.keys.at[
        rows, layer, jnp.where(alive, slot, live.shape[1])
      ].set(key, mode='drop'),
      positions=state.positions.at[:, layer].set(
        jnp.where(alive[:, None], now, held)
      ),
      most=state.most.at[:, layer].max(alive * (now >= 0).sum(axis=1)),
      overflow=state.overflow.at[:, layer].add(alive & live.all(axis=1)),
    ), LayerWork(context=CachedPositions(now), slots=slot)


@register_pytree
@dataclasses.dataclass(frozen=True)
class HeldContext:
  """The state of `PrunedContext`: what lies in the cache of every layer.

  Attributes:
    keys: float32 [B, L, C, R], of the gates.
    positions: int32 [B, L, C], -1 where a place is free.
    most: int32 [B, L], how many positions were held at once, at most.
    overflow: int32 [B, L], positions that were evicted for want of room.
  """

  keys: Array
  positions: Array
  most: Array
  overflow: Array

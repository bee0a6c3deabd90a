"""Vocabulary pruning: logits over a shortlist that the first check leaves.

A `readout` after "Dynamic Vocabulary Pruning in Early-Exit LLMs" (arXiv
2410.18952). The first check of a token reads all V rows of the output matrix
and keeps the most promising ones; later checks of that token read only those.
Here the shortlist is made of blocks of neighbouring ids, found through block
maxima, so that `top_k` never sorts all of V.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.decoding.readouts import FullVocabulary
from calm_jax.interfaces import (
  AddsNothing,
  BoundDecoder,
  LayeredDecoder,
  Reading,
)
from calm_jax.pytrees import register_pytree

_FINALS = ('pruned', 'full')


@register_pytree
@dataclasses.dataclass(frozen=True)
class Shortlist:
  """The candidates of the token being decoded; M blocks, C candidates.

  Attributes:
    blocks: int32 [B, M], the blocks kept, ascending.
    weights: [B, C, D], their rows of the output matrix, gathered once.
  """

  blocks: Array
  weights: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class PrunedVocabulary(AddsNothing):
  """Reads out over C = num_blocks * block_size candidates, chosen per token.

  The vocabulary is cut into blocks of `block_size` neighbouring ids. At the
  first check of a token the `num_blocks` blocks whose best logits are highest
  are kept, which hold that layer's `num_blocks` best tokens for certain; the
  rest is what stands beside them. So of as many candidates many small blocks
  miss less and a few large ones are found faster. A token outside cannot be
  said at a later exit unless `final` is 'full'.

  Confidences are those of a softmax over the candidates, at the first check
  too: where the two best tokens of a layer are among them, which at the first
  check two blocks ensure, its margin is the full one divided by the share of
  probability that the candidates hold, so never lower; elsewhere it may be
  lower. Thresholds of the full vocabulary therefore do not carry over:
  calibrate anew.

  Confidences seen before an exit do not depend on the threshold, so what
  `evaluation.threshold_reuse` says of lower thresholds holds here as well.
  Samplers draw among the candidates, with noise by place in the list.

  With all blocks kept it is the unpruned decoder, but for rounding. A check
  reads B * C rows where the full one reads V: worth it while B * C is well
  below V.

  Attributes:
    num_blocks: M, from 1 to the number of blocks in V.
    block_size: ids per block, 1..V; the last block is filled up with
      candidates of logit -inf.
    final: over what the token is chosen. 'pruned': the candidates, by the
      logits on which the row stopped, so that V rows are read once per token.
      'full': the whole vocabulary, read once more for the exit state, so that
      only the exit is decided on candidates and a threshold of 1 is the full
      model.

  Where the exit rule needs no logits there is only one read per token and
  nothing is pruned.
  """

  num_blocks: int = dataclasses.field(default=128, metadata=dict(static=True))
  block_size: int = dataclasses.field(default=4, metadata=dict(static=True))
  final: str = dataclasses.field(default='pruned', metadata=dict(static=True))

  needs_whole_matrix = True

  @property
  def reads_exit_states(self) -> bool:
    """Whether tokens are chosen by a second read, over all V."""
    return self.final == 'full'

  @property
  def chooses_from_all(self) -> bool:
    """As `reads_exit_states`: only the second read is over all V."""
    return self.reads_exit_states

  def keep_rows(self, bound: BoundDecoder) -> 'PrunedVocabulary':
    """Returns itself: what it reads changes from token to token."""
    del bound
    return self

  def over_all(self) -> FullVocabulary:
    """Returns `FullVocabulary()`."""
    return FullVocabulary()

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself; raises ValueError on sizes that do not fit V."""
    del batch_size, max_length
    size, vocab_size = self.block_size, decoder.vocab_size
    checks.check_whole(size, 'block_size', low=1, high=vocab_size)
    checks.check_whole(self.num_blocks, 'num_blocks', low=1)
    if self.num_blocks > (most := -(-vocab_size // size)):
      raise ValueError(
        f'num_blocks is {self.num_blocks}, but a vocabulary of {vocab_size} '
        f'has {most} blocks of {size}; give at most {most}, which keeps all'
      )
    if self.final not in _FINALS:
      raise ValueError(f'final is {self.final!r}; give one of {_FINALS}')
    return self

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Shortlist:
    """Returns a shortlist that the first check of a token replaces."""
    del max_length
    num_candidates = self.num_blocks * self.block_size
    return Shortlist(
      blocks=jnp.zeros((batch_size, self.num_blocks), jnp.int32),
      weights=jnp.zeros(
        (batch_size, num_candidates, decoder.embed_dim), decoder.dtype
      ),
    )

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> Array | int:
    """Returns V at the first check and for exit states, else C."""
    if jnp.ndim(layer) or first is True:
      return vocab_size
    return jnp.where(first, vocab_size, self.num_blocks * self.block_size)

  def step(
    self,
    state: Shortlist,
    bound: BoundDecoder,
    *,
    hidden: Array,
    layer: Array | int,
    first: Array | bool,
    active: Array,
  ) -> tuple[Shortlist, Reading]:
    """Returns state, and logits [B, C] of `hidden` [B, D] with their ids.

    Exit states, whose `layer` is int32 [B], are read over all V: [B, V].
    """
    # A shortlist never outlives its token, so those of rows that have stopped
    # may be overwritten: masking would read and write all of the weights.
    del active
    if jnp.ndim(layer):
      return state, Reading(bound.logits(hidden))
    vocab_size = bound.vocab_size

    def make(_):
      logits = bound.logits(hidden)
      blocks = self.best_blocks(logits)
      token_ids, _ = self.candidates(blocks, vocab_size)
      weights = bound.output_rows(token_ids)
      return Shortlist(blocks, weights), self.keep(logits, blocks)

    def use(state):
      logits = bound.logits(hidden, state.weights)
      _, is_token = self.candidates(state.blocks, vocab_size)
      return state, jnp.where(is_token, logits, -jnp.inf)

    if isinstance(first, bool):
      state, logits = make(state) if first else use(state)
    else:
      state, logits = lax.cond(first, make, use, state)
    token_ids, _ = self.candidates(state.blocks, vocab_size)
    return state, Reading(logits, token_ids)

  def best_blocks(self, logits: Array) -> Array:
    """Returns the blocks with the best logits, ascending.

    Args:
      logits: float [..., V].

    Returns:
      int32 [..., M]; the first best token of V is in one of them.
    """
    # `top_k` takes the lower block of a tie, as `first_best` the lower id.
    maxima = self._in_blocks(logits).max(axis=-1)
    _, blocks = lax.top_k(maxima, self.num_blocks)
    return jnp.sort(blocks, axis=-1)

  def candidates(self, blocks: Array, vocab_size: int) -> tuple[Array, Array]:
    """Returns the ids of the candidates, ascending, and which are tokens.

    Args:
      blocks: int32 [..., M], ascending.
      vocab_size: V.

    Returns:
      int32 [..., C], where what fills up the last block stands as V - 1, and
      bool [..., C], False there.
    """
    ids = blocks[..., None] * self.block_size + jnp.arange(self.block_size)
    ids = ids.reshape(*blocks.shape[:-1], -1)
    return jnp.minimum(ids, vocab_size - 1), ids < vocab_size

  def keep(self, logits: Array, blocks: Array) -> Array:
    """Returns the logits [..., C] of the candidates among those [..., V]."""
    kept = jnp.take_along_axis(
      self._in_blocks(logits), blocks[..., None], axis=-2
    )
    return kept.reshape(*blocks.shape[:-1], -1)

  def _in_blocks(self, logits: Array) -> Array:
    """Returns [..., V] as [..., blocks of V, block_size], filled with -inf."""
    missing = -logits.shape[-1] % self.block_size
    widths = [(0, 0)] * (logits.ndim - 1) + [(0, missing)]
    padded = jnp.pad(logits, widths, constant_values=-jnp.inf)
    return padded.reshape(*logits.shape[:-1], -1, self.block_size)

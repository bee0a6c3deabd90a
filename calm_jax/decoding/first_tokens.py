"""A readout over the first ids of the vocabulary: drafts for little.

SentencePiece numbers tokens by how frequent they are, so the first tenth of a
large vocabulary is most of what is said, and its rows of the output matrix are
neighbours. Where drafts are checked (`VerifyEvery`), what they cannot say costs
a rejected draft and nothing else: FR-Spec (arXiv 2502.14856) does so for
drafts of a large language model.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.readouts import FullVocabulary
from calm_jax.interfaces import (
  AddsNothing,
  BoundDecoder,
  LayeredDecoder,
  Reading,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class FirstTokens(AddsNothing, StatelessSlot):
  """Reads every state out over the first `count` ids alone.

  With a verification, tokens of the full model come from all of the vocabulary;
  without one nothing else is ever said, also at the last layer, so that it is
  an approximation like any other. Confidences are those of a softmax over the
  candidates, never lower than over all where the two best are among them.

  Attributes:
    count: C, 2..V; more than V is cut to it. EOS must be among them for
      outputs to end where nothing is verified.
    weights: [C, D], their rows of the output matrix, cut out; None before a
      decode.
  """

  count: int = dataclasses.field(default=4096, metadata=dict(static=True))
  weights: Array | None = None

  reads_exit_states = False
  needs_whole_matrix = True
  chooses_from_all = False

  def keep_rows(self, bound: BoundDecoder) -> 'FirstTokens':
    """Returns itself with its rows of the output matrix."""
    return FirstTokens(self.count, bound.output_block(0, self.count))

  def over_all(self) -> FullVocabulary:
    """Returns `FullVocabulary()`."""
    return FullVocabulary()

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> int:
    """Returns C."""
    del vocab_size, layer, first
    return self.count

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself; raises ValueError on a count, or decoder, without rows.

    A count beyond the vocabulary is cut to it.
    """
    del batch_size, max_length
    checks.check_whole(self.count, 'count of FirstTokens', low=2)
    if decoder.output_block is None:
      raise ValueError(
        'this decoder has no output_block, which FirstTokens reads by; use '
        'FullVocabulary()'
      )
    return FirstTokens(min(self.count, decoder.vocab_size))

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    hidden: Array,
    layer: Array | int,
    first: Array | bool,
    active: Array,
  ) -> tuple[PyTree, Reading]:
    """Returns state, and logits [B, C] of `hidden` [B, D] with their ids."""
    del layer, first, active
    kept = self if self.weights is not None else self.keep_rows(bound)
    logits = bound.logits(hidden, kept.weights)
    token_ids = jnp.broadcast_to(jnp.arange(self.count), logits.shape)
    return state, Reading(logits, token_ids)

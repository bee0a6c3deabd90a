"""A readout that never holds the logits of the whole vocabulary.

What greedy decoding and the softmax measures need of V logits is four numbers
per row: the best, the runner-up, which tokens these are, and the logarithm of
the sum of all exponentials. All of them can be had block by block (the running
maximum and sum of online softmax, arXiv 1805.02867), so that [B, V] is neither
written nor read back.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.exits.candidates import best_two, first_best
from calm_jax.interfaces import (
  BoundDecoder,
  LayeredDecoder,
  Reading,
  ReadsAll,
)
from calm_jax.pytrees import register_pytree


class _Best(NamedTuple):
  """What is known after some blocks, [B] each.

  Attributes:
    logit: float32, the best logit.
    token: int32, whose it is; of a tie the lowest.
    second: float32, the runner-up's logit; the same as `logit` in a tie.
    total: float32, the sum of exp(logit - best).
  """

  logit: Array
  token: Array
  second: Array
  total: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class StreamedVocabulary(ReadsAll):
  """Reads states out over the whole vocabulary, one block after the other.

  Tokens, margins and maxima are those of `FullVocabulary` but for rounding; for
  greedy decoding alone, since samplers want all logits. Memory for logits is
  B * block_size instead of B * V. It is meant for large batches on
  accelerators, where logits that are written and read back several times weigh
  as much as the output matrix; on CPU each block of the matrix is copied.

  Attributes:
    block_size: tokens per block, 1..V.
  """

  block_size: int = dataclasses.field(default=4096, metadata=dict(static=True))

  reads_exit_states = False
  needs_whole_matrix = True
  chooses_from_all = True

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> int:
    """Returns V."""
    del layer, first
    return vocab_size

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself; raises ValueError on a size, or decoder, without blocks.

    A block larger than the vocabulary is cut to it.
    """
    del batch_size, max_length
    checks.check_whole(self.block_size, 'block_size', low=1)
    if decoder.output_block is None:
      raise ValueError(
        'this decoder has no output_block, which StreamedVocabulary reads by; '
        'use FullVocabulary()'
      )
    return StreamedVocabulary(min(self.block_size, decoder.vocab_size))

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
    """Returns state, and the two best logits of `hidden` [B, D], C = 2.

    Both candidates bear the id of the best token: nothing asks whose the second
    is.
    """
    del layer, first, active

    def read(block, best):
      return _merge(best, self._read_block(bound, hidden, block))

    num_blocks = -(-bound.vocab_size // self.block_size)
    best = lax.fori_loop(0, num_blocks, read, _nothing(hidden.shape[0]))
    return state, Reading(
      logits=jnp.stack([best.logit, best.second], axis=-1),
      token_ids=jnp.stack([best.token, best.token], axis=-1),
      log_total=best.logit + jnp.log(best.total),
    )

  def _read_block(self, bound, hidden, block) -> _Best:
    """Returns what one block of the vocabulary says."""
    first = block * self.block_size
    # The last block begins earlier, so that it ends with the vocabulary.
    start = jnp.minimum(first, bound.vocab_size - self.block_size)
    weights = bound.output_block(start, self.block_size)
    logits = bound.logits(hidden, weights)
    is_new = start + jnp.arange(self.block_size) >= first
    logits = jnp.where(is_new, logits, -jnp.inf)
    best, second = best_two(logits)
    return _Best(
      logit=best,
      token=start + first_best(logits),
      second=second,
      total=jnp.exp(logits - best[:, None]).sum(axis=-1),
    )


def _nothing(batch_size: int) -> _Best:
  """Returns what is known before the first block."""
  lowest = jnp.full((batch_size,), -jnp.inf, jnp.float32)
  zero = jnp.zeros((batch_size,), jnp.float32)
  return _Best(lowest, zero.astype(jnp.int32), lowest, zero)


def _merge(one: _Best, other: _Best) -> _Best:
  """Returns the best of both; `one` has the lower ids."""
  best = jnp.maximum(one.logit, other.logit)
  return _Best(
    logit=best,
    token=jnp.where(other.logit > one.logit, other.token, one.token),
    second=jnp.maximum(
      jnp.minimum(one.logit, other.logit),
      jnp.maximum(one.second, other.second),
    ),
    total=one.total * jnp.exp(one.logit - best)
    + other.total * jnp.exp(other.logit - best),
  )

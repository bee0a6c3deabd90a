"""Checks and drafts over the whole vocabulary in 8 bits: a `readout`.

A check only asks how sure the model is, and a draft is looked at again: neither
needs the last digits of the output matrix, which is half of a step's bytes
where the vocabulary is large. What is said comes from the float matrix.
"""

import dataclasses
from typing import Self

import jax.numpy as jnp

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
from calm_jax.quantisation import Int8Matrix, is_quantised

_FINALS = ('float', 'int8')


@register_pytree
@dataclasses.dataclass(frozen=True)
class Int8Vocabulary(AddsNothing, StatelessSlot):
  """Checks read an output matrix in 8 bits; what is said, the decoder's own.

  The matrix is brought to 8 bits before the token loop, once per call of
  `generate`, `advance` or their like, which takes about as long as two tokens'
  reads of it; `Int8Vocabulary.of(bound)` has it made once and for all.

  Confidences are those of another model, a little, and are calibrated like any
  others. In the ledger a check counts V logits, whatever their bytes.

  Attributes:
    final: by what a token is chosen. 'float': exit states are read once more,
      over the decoder's own matrix, so that only the exit is decided in 8 bits
      and a threshold of 1 is the full model. 'int8': the logits on which the
      row stopped, which is what drafts want: a check reads the decoder's own
      in any case.
    matrix: the output matrix, [V, D]; made of the decoder's own if None.
  """

  final: str = dataclasses.field(default='float', metadata=dict(static=True))
  matrix: Int8Matrix | None = None

  needs_whole_matrix = True

  @classmethod
  def of(cls, bound: BoundDecoder, *, final: str = 'float') -> Self:
    """Returns it with a decoder's output matrix in 8 bits."""
    return cls(final).keep_rows(bound)

  @property
  def reads_exit_states(self) -> bool:
    """Whether tokens are chosen by a second read, in float."""
    return self.final == 'float'

  @property
  def chooses_from_all(self) -> bool:
    """Whether the full model's tokens are said at a threshold of 1."""
    return self.reads_exit_states

  def keep_rows(self, bound: BoundDecoder) -> Self:
    """Returns itself with the output matrix in 8 bits."""
    if self.matrix is not None:
      return self
    rows = bound.output_block(0, bound.vocab_size)
    if not is_quantised(rows):
      rows = Int8Matrix.of(rows, input_axis=1)
    return dataclasses.replace(self, matrix=rows)

  def over_all(self) -> FullVocabulary:
    """Returns `FullVocabulary()`."""
    return FullVocabulary()

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> int:
    """Returns V."""
    del layer, first
    return vocab_size

  def describe(self) -> dict[str, str]:
    """Returns its numbers; the matrix follows from the parameters."""
    return {'type': type(self).__name__, 'final': self.final}

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Self:
    """Returns itself; raises ValueError where there is nothing to read."""
    del batch_size, max_length
    if self.final not in _FINALS:
      raise ValueError(f'final is {self.final!r}; give one of {_FINALS}')
    if decoder.output_block is None or decoder.quantise is None:
      raise ValueError(
        'this decoder has no output_block or no quantise, by which '
        'Int8Vocabulary reads; use FullVocabulary()'
      )
    size = (decoder.vocab_size, decoder.embed_dim)
    if self.matrix is not None and self.matrix.shape != size:
      raise ValueError(
        f'the matrix of Int8Vocabulary is {self.matrix.shape} as (V, D), this '
        f'decoder has {size}; make it of this one: Int8Vocabulary.of(bound)'
      )
    return self

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
    """Returns state, and logits float32 [B, V] of `hidden` [B, D].

    Exit states, whose `layer` is int32 [B], are read in float.
    """
    del first, active
    token_ids = jnp.arange(bound.vocab_size)
    weights = None
    if self.final == 'int8' or not jnp.ndim(layer):
      weights = self.keep_rows(bound).matrix
    logits = bound.logits(hidden, weights)
    # Said although they are in order: of logits over rows that it was given
    # nobody else knows which tokens they are (`suppression`).
    return state, Reading(logits, jnp.broadcast_to(token_ids, logits.shape))

"""Suppressed tokens: a readout under which some ids are never said.

A wrapper of the `readout` slot: logits are -inf at suppressed ids before any
confidence is measured and any token chosen, so that both see a model that lacks
them. Neither the loops nor the other slots know of it.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import BoundDecoder, LayeredDecoder, Reading, Readout
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class SuppressedTokens:
  """Reads out like another readout, but never a suppressed token.

  Where that one chooses candidates by logits over the vocabulary it sees them
  suppressed already, so that candidates are not spent on them.

  Attributes:
    readout: the other readout.
    suppressed: bool [V], the ids that are never said.
  """

  readout: Readout
  suppressed: Array

  @property
  def reads_exit_states(self) -> bool:
    """Whether the other readout reads exit states once more."""
    return self.readout.reads_exit_states

  @property
  def needs_whole_matrix(self) -> bool:
    """What the other readout says."""
    return self.readout.needs_whole_matrix

  @property
  def chooses_from_all(self) -> bool:
    """What the other readout says, of all that is not suppressed."""
    return self.readout.chooses_from_all

  def keep_rows(self, bound: BoundDecoder) -> 'SuppressedTokens':
    """Returns itself with the rows that the other readout keeps."""
    return dataclasses.replace(self, readout=self.readout.keep_rows(bound))

  def over_all(self) -> 'SuppressedTokens':
    """Returns that of the other readout, suppressed."""
    return dataclasses.replace(self, readout=self.readout.over_all())

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> Array | int:
    """Returns what the other readout says."""
    return self.readout.num_outputs(vocab_size, layer=layer, first=first)

  def extra_products(self, layer: Array | int) -> Array | int:
    """Returns what the other readout says."""
    return self.readout.extra_products(layer)

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with the other readout checked."""
    readout = self.readout.check(decoder, batch_size, max_length)
    return dataclasses.replace(self, readout=readout)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the other readout's state."""
    return self.readout.init(decoder, batch_size, max_length)

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    **options,
  ) -> tuple[PyTree, Reading]:
    """Returns state and reading; see `Readout`.

    Raises:
      ValueError: if the other readout gives the best tokens only.
    """
    suppressing = dataclasses.replace(
      bound, decoder=self._suppressing(bound.decoder)
    )
    state, reading = self.readout.step(state, suppressing, **options)
    if reading.log_total is not None:
      raise ValueError(
        f'suppressed_tokens with {type(self.readout).__name__}, which gives '
        'the best tokens only; use the readout FullVocabulary()'
      )
    if reading.token_ids is not None:
      # Candidates of a shortlist, read without their ids.
      is_suppressed = self.suppressed[reading.token_ids]
      logits = jnp.where(is_suppressed, -jnp.inf, reading.logits)
      reading = reading._replace(logits=logits)
    return state, reading

  def _suppressing(self, decoder: LayeredDecoder) -> LayeredDecoder:
    """Returns the decoder with logits over V that are -inf where suppressed."""

    def logits(params, hidden, weights=None):
      logits = decoder.logits(params, hidden, weights)
      if weights is not None:
        return logits
      return jnp.where(self.suppressed, -jnp.inf, logits)

    return dataclasses.replace(decoder, logits=logits)


def checked_suppressed(
  token_ids: Sequence[int] | Array, *, vocab_size: int, eos_id: int
) -> Array:
  """Returns bool [V], True at the ids that must never be said.

  Raises:
    ValueError: if they are no ids [N], or nothing could be decoded with them.
  """
  remedy = f'give token ids of this model, in [0, {vocab_size - 1}]'
  token_ids = checks.checked_array(
    token_ids,
    'suppressed_tokens',
    shapes=((math.prod(np.shape(token_ids)),),),
    low=0,
    high=vocab_size - 1,
    dtype=jnp.int32,
    remedy=remedy,
  )
  if checks.is_concrete(token_ids):
    found = set(np.asarray(token_ids).tolist())
    if eos_id in found:
      raise ValueError(
        f'suppressed_tokens hold eos_id {eos_id}, so that no output could end; '
        'leave it out, or give eos_id=-1 for outputs of max_length tokens each'
      )
    if len(found) == vocab_size:
      raise ValueError(
        f'suppressed_tokens hold all {vocab_size} tokens of the vocabulary; '
        'leave at least one that may be said'
      )
  return jnp.zeros((vocab_size,), bool).at[token_ids].set(True)

"""Drafts by a head or by first layers in 8 bits: in the slot `verification`.

An early exit drafts with the decoder's own first layers. A head needs none: it
guesses the last layer's state at one token after the other, from that of the
last checked token and the tokens since. First layers in 8 bits read a quarter
of the bytes. When a check is due, the present position runs all layers with the
drafts before it as companions, and the full model's tokens are chosen as for
any other drafts.
"""

import dataclasses

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.drafters import FirstLayers
from calm_jax.decoding.verification import NeverVerify, VerifyEvery
from calm_jax.draft_heads import DraftHead
from calm_jax.interfaces import LayeredDecoder, Verification
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class DraftAhead:
  """Drafts with a head, and checks them when another verification says so.

  Outputs are the full model's, whatever the head. With a trained one the first
  token of an output runs all layers: before it there is no state to draft from.
  A draft's confidence is its own probability.

  Attributes:
    head: a head trained with this model, or its `FirstLayers`.
    when: says when drafts are checked.
  """

  head: DraftHead | FirstLayers
  when: Verification = VerifyEvery(4)

  drafts_ahead = True

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself, checked.

    Raises:
      ValueError: for what does not fit.
      TypeError: for a class where an object of it is wanted.
    """
    checks.check_no_class(self.head, 'head of DraftAhead')
    checks.check_no_class(self.when, 'when of DraftAhead')
    is_head = hasattr(self.head, 'products')
    if not is_head and not isinstance(self.head, FirstLayers):
      raise ValueError(
        f'head of DraftAhead is {self.head!r}; give a DraftHead, such as '
        'runs.load_draft_head(model_dir), or decoding.FirstLayers'
      )
    if isinstance(self.when, NeverVerify) or self.when.drafts_ahead:
      raise ValueError(
        f'when of DraftAhead is {type(self.when).__name__}, which says of no '
        'draft when it is checked; give decoding.VerifyEvery(4)'
      )
    return DraftAhead(
      self.head.check(decoder),
      self.when.check(decoder, batch_size, max_length),
    )

  @property
  def tokens(self) -> int:
    """The most drafts between two checks."""
    return self.when.tokens

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the state of `when`."""
    return self.when.init(decoder, batch_size, max_length)

  def due(self, state: PyTree, drafts: Array, confidences: Array) -> Array:
    """Returns the rows whose drafts `when` checks, bool [B]."""
    return self.when.due(state, drafts, confidences)

  def observe(
    self, state: PyTree, checked: Array, accepted: Array, rejected: Array
  ) -> PyTree:
    """Returns the state of `when` after checks."""
    return self.when.observe(state, checked, accepted, rejected)

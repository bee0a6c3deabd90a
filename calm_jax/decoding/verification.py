"""When drafted tokens are checked at full depth: the slot `verification`.

A token that left early is a draft. After some of them, the positions that they
were drafted at run the layers they lack in one block, as companions of the
present position (`CatchUp`), and the full model's own tokens are chosen there:
drafts that agree stay, the first that does not is replaced, and what was built
on it is dropped. So what comes out is what the full model says, to the token;
how early the drafts leave decides the speed alone.

That is self-speculative decoding as LayerSkip (arXiv 2404.16710), Kangaroo
(arXiv 2404.18911) and Draft & Verify (arXiv 2309.08168) do it, with any exit
rule of CALM's kind as the drafter and each token at its own depth.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.interfaces import LayeredDecoder, StatelessSlot
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class NeverVerify(StatelessSlot):
  """Takes early tokens for what they are: CALM. The null object."""

  @property
  def tokens(self) -> int:
    """Returns 0."""
    return 0

  def due(self, drafts: Array, confidences: Array) -> Array:
    """Returns no row."""
    del confidences
    return jnp.zeros(drafts.shape, bool)


@register_pytree
@dataclasses.dataclass(frozen=True)
class VerifyEvery(StatelessSlot):
  """Checks drafts once there are so many, or once one is doubtful.

  A token that runs all layers by itself checks those before it on the way.

  Attributes:
    tokens: the most drafts between two checks, at least 1.
    stop_below: float32 [], in [0, 1]: a draft of lower confidence is the last
      before a check; 0 for none. For drafters of fixed depth, which do not go
      deeper where they are in doubt.
  """

  tokens: int = dataclasses.field(default=8, metadata=dict(static=True))
  stop_below: Array | float = 0.0

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with a float32 leaf; raises ValueError on bad numbers."""
    del decoder, batch_size, max_length
    checks.check_whole(self.tokens, 'tokens of VerifyEvery', low=1)
    stop_below = checks.checked_array(
      self.stop_below,
      'stop_below of VerifyEvery',
      low=0.0,
      high=1.0,
      remedy='give a confidence in [0, 1], 0 for no such limit',
    )
    return VerifyEvery(self.tokens, stop_below)

  def due(self, drafts: Array, confidences: Array) -> Array:
    """Returns the rows whose drafts are to be checked, bool [B].

    Args:
      drafts: int32 [B], how many there are since the last check.
      confidences: float32 [B], of the last one; NaN if nothing looked.
    """
    return (drafts >= self.tokens) | (confidences < self.stop_below)

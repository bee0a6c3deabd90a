"""How far the rows have come in the layers of one position.

`Rows` is what running a layer changes and may pass through a conditional;
`Memory` is what filling changes and may not.
"""

import dataclasses

from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.policy import PolicyState
from calm_jax.interfaces import Companions, Reading, Work
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Rows:
  """How far the rows have come in the layers of one position.

  Attributes:
    hidden: [B, 1, D], the residual stream; frozen once a row has stopped.
    active: bool [B], rows that have not stopped at this position.
    exit_layers: int32 [B], layers used, 1..L; -1 while a row is active and in
      rows that are not decoded.
    confidences: float32 [B], the confidence at the exit layer; NaN where the
      rule did not look there.
    rejected_confidences: float32 [B], the highest confidence at which a row
      went on; -inf if there was none.
    reading: of the exit state, once a row has stopped; None if the exit rule
      needs no logits.
    policy: states of the slots, but for the cache fill, whose state is in
      `Memory`.
    companions: earlier positions that run the present layer as well; None if
      the cache fill has none.
    lacking: int32 [B, L], see `LayerView`.
    work: what has been computed for this position so far, [B] each.
  """

  hidden: Array
  active: Array
  exit_layers: Array
  confidences: Array
  rejected_confidences: Array
  reading: Reading | None
  policy: PolicyState
  companions: Companions | None
  lacking: Array | None
  work: Work


@register_pytree
@dataclasses.dataclass(frozen=True)
class Memory:
  """What fills write. It never passes through a conditional, only past it.

  Attributes:
    cache: the decoder's K/V cache.
    cache_fill: state of the cache fill.
  """

  cache: PyTree
  cache_fill: PyTree

"""The slot `source_plan`: which source positions a decode reads."""

from typing import Protocol, Self, runtime_checkable

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.bound_decoder import BoundDecoder
from calm_jax.interfaces.layered_decoder import LayeredDecoder


@runtime_checkable
class SourcePlan(Protocol):
  """Decides, once per request, which source positions are read at all.

  Asked between the encoder, which sees all of the source, and the cache: of
  positions that are not selected no cross-attention keys and values are made.
  It has no state. What it says of a row depends on no other row, and on no
  padding.
  """

  @property
  def whole(self) -> bool:
    """Whether all positions are read as they are; static.

    `select` is then not called, and nothing is in the program.
    """
    ...

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Self:
    """Returns itself with float32 leaves; raises ValueError on bad numbers.

    Also for a decoder that lacks `source_states` or `select_source`, where it
    needs them.
    """
    ...

  def select(self, bound: BoundDecoder, encoded: PyTree) -> tuple[Array, Array]:
    """Returns the positions to keep, int32 [B, C], and which count, bool.

    C is static, at most S. Positions of a row are all different. One that does
    not count is carried along and not read, as padding is; at least one of a
    row counts.

    Args:
      bound: the decoder, whose `source_states` may be looked at.
      encoded: the encoded sources of B requests.
    """
    ...

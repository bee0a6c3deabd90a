"""The slot `encoder_exit`: how much of the encoder a request runs."""

from typing import Protocol, runtime_checkable

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.bound_decoder import BoundDecoder
from calm_jax.interfaces.policy_slots import PolicySlot


@runtime_checkable
class EncoderExit(PolicySlot, Protocol):
  """Encodes the sources of a decode, each with as many layers as it takes.

  Asked once per request, before all else. What it says of a row depends on no
  other row, and on no padding. In `check` it refuses decoders whose encoder is
  not taken apart (`LayeredDecoder.encoder`), where it needs that.
  """

  @property
  def whole(self) -> bool:
    """Whether all sources run all of the encoder; static.

    `encode` is then not called, and nothing is in the program.
    """
    ...

  def encode(
    self, state: PyTree, bound: BoundDecoder, inputs: Array
  ) -> tuple[PyTree, Array]:
    """Returns encoded sources, and encoder layers used, int32 [B] in 1..L_enc.

    Args:
      state: of `init`, with a row per request.
      bound: the decoder, whose `encode` says what comes of all layers.
      inputs: int32 [B, S], 0 is padding.
    """
    ...

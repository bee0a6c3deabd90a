"""The ids that every T5 vocabulary keeps for itself, and reading past them."""

from collections.abc import Iterable

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2


def spoken(ids: Iterable[int], vocab_size: int) -> list[tuple[int, int]]:
  """Returns (place, id) of what decoding reads: up to EOS, without padding.

  Args:
    ids: vocabulary ids.
    vocab_size: ids from here on (the padding rows of an embedding table) read
      as unknown.

  Raises:
    ValueError: if an id before EOS is negative.
  """
  kept = []
  for place, token in enumerate(map(int, ids)):
    if token < 0:
      raise ValueError(
        f'token id {token} is negative; cut positions that were never '
        'decoded before calling decode.'
      )
    if token == EOS_ID:
      break
    if token != PAD_ID:
      kept.append((place, token if token < vocab_size else UNKNOWN_ID))
  return kept

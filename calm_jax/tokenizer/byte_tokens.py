"""Bytes as tokens: ByT5's vocabulary, equal to seqio.ByteVocabulary.

Ids are the bytes of UTF-8 moved up by the three special ids (padding 0, EOS 1,
unknown 2), with sentinels after them (arXiv 2105.13626). Nothing is trained and
no file belongs to it; where a vocabulary is asked for its name is 'bytes'.
"""

import hashlib
from collections.abc import Iterable, Sequence

from calm_jax.tokenizer.characters import split_characters
from calm_jax.tokenizer.interface import Span
from calm_jax.tokenizer.special_ids import EOS_ID, PAD_ID, UNKNOWN_ID, spoken

BYTES = 'bytes'
_FIRST_BYTE = 3
_END_OF_BYTES = _FIRST_BYTE + 256
_SPECIAL = {PAD_ID: '<pad>', EOS_ID: '</s>', UNKNOWN_ID: '<unk>'}


class ByteTokenizer:
  """Text to ids of bytes and back, equal to seqio.ByteVocabulary.

  As there, whatever is no byte and bytes that make no character are left out of
  decoded text.

  Attributes:
    name: 'bytes'.
    extra_ids: the number of sentinels after the bytes; ByT5 has 125.
    pad_id: 0.
    eos_id: 1.
    fingerprint: hexadecimal SHA-256 that names this vocabulary and `extra_ids`.
  """

  name = BYTES
  pad_id = PAD_ID
  eos_id = EOS_ID

  def __init__(self, extra_ids: int = 0):
    """Makes the vocabulary.

    Args:
      extra_ids: sentinels to append, as for seqio.

    Raises:
      ValueError: if `extra_ids` is negative.
    """
    if extra_ids < 0:
      raise ValueError(f'extra_ids is {extra_ids}; it must be 0 or more.')
    self.extra_ids = extra_ids
    self.fingerprint = hashlib.sha256(
      f'UTF-8 bytes from {_FIRST_BYTE}\0extra_ids={extra_ids}'.encode()
    ).hexdigest()

  @property
  def vocab_size(self) -> int:
    """The number of ids, extra ids included."""
    return _END_OF_BYTES + self.extra_ids

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without EOS."""
    return [byte + _FIRST_BYTE for byte in text.encode('utf-8')]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids up to the first EOS.

    Raises:
      ValueError: if an id is negative.
    """
    return self._bytes(ids)[1].decode('utf-8', errors='ignore')

  def piece(self, token: int) -> str:
    """Returns how one id is written: `a`, `▁` for a space, `<0xC3>`."""
    token = int(token)
    if token in _SPECIAL:
      return _SPECIAL[token]
    if not _FIRST_BYTE <= token < self.vocab_size:
      return f'<{token}>'
    if token >= _END_OF_BYTES:
      return f'<extra_id_{self.vocab_size - 1 - token}>'
    byte = token - _FIRST_BYTE
    if byte == ord(' '):
      return '▁'
    return chr(byte) if 0x21 <= byte <= 0x7E else f'<0x{byte:02X}>'

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns how several ids are written."""
    return [self.piece(token) for token in ids]

  def spans(self, ids: Sequence[int]) -> list[Span]:
    """Returns which characters of `decode(ids)` each id stands for."""
    places, text = self._bytes(ids)
    spans: dict[int, Span] = {}
    start = first = 0
    for size, whole in split_characters(text):
      for place in places[first : first + size]:
        spans[place] = (start, start + whole)
      start, first = start + whole, first + size
    end, filled = 0, []
    for place in range(len(ids)):
      span = spans.get(place, (end, end))
      filled.append(span)
      end = span[1]
    return filled

  def _bytes(self, ids: Iterable[int]) -> tuple[list[int], bytes]:
    """Returns where the bytes among ids are, and what they are."""
    kept = [
      (place, token - _FIRST_BYTE)
      for place, token in spoken(ids, self.vocab_size)
      if _FIRST_BYTE <= token < _END_OF_BYTES
    ]
    return [place for place, _ in kept], bytes(byte for _, byte in kept)

  def __repr__(self):
    return f'ByteTokenizer(extra_ids={self.extra_ids})'

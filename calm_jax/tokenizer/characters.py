"""UTF-8, byte by byte: which bytes make a character together."""

from collections.abc import Iterator


def split_characters(text: bytes) -> Iterator[tuple[int, bool]]:
  r"""Yields (number of bytes, whether they are a character) of parts of a text.

  Bytes that belong to no character come one by one.

  >>> list(split_characters('aé'.encode() + b'\xe2\x82' + b'b'))
  [(1, True), (2, True), (1, False), (1, False), (1, True)]
  """
  place = 0
  while place < len(text):
    size = _character_size(text, place)
    yield max(size, 1), size > 0
    place += max(size, 1)


def _character_size(text: bytes, place: int) -> int:
  """Returns how many bytes the character at a place has; 0 if none is there."""
  for size in range(1, 5):
    try:
      text[place : place + size].decode('utf-8')
    except UnicodeDecodeError:
      continue
    return size
  return 0

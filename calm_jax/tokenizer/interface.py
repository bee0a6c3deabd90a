"""What a tokenizer is: the one thing that all vocabularies have in common."""

from collections.abc import Iterable, Sequence
from typing import Protocol

# Characters [start, end) of a text.
Span = tuple[int, int]


class Tokenizer(Protocol):
  """Text to ids and back.

  Attributes:
    name: what names it where a vocabulary is asked for: the path of a
      SentencePiece model, or 'bytes'.
    extra_ids: sentinels at the end of the vocabulary.
    pad_id: 0.
    eos_id: 1.
    fingerprint: two tokenizers with the same one give the same ids.
  """

  name: str
  extra_ids: int
  pad_id: int
  eos_id: int
  fingerprint: str

  @property
  def vocab_size(self) -> int:
    """The number of ids, extra ids included."""

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without EOS."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids up to the first EOS, padding left out."""

  def piece(self, token: int) -> str:
    """Returns how one id is written; `▁` stands for a space."""

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns how several ids are written."""

  def spans(self, ids: Sequence[int]) -> list[Span]:
    """Returns which characters of `decode(ids)` each id stands for.

    Where several ids make one character each of them stands for all of it; an
    id that says nothing (EOS, padding, half a character) stands for an empty
    span between its neighbours.
    """

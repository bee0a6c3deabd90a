"""What may be replaced in an input that is to delay exits, and by what."""

import dataclasses
import math
from typing import Protocol

import numpy as np

from calm_jax import checks


class Edits(Protocol):
  """Which tokens of an input may be replaced, and by what."""

  def places(self, real: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Returns int [n], the places where a token may be replaced; perhaps none.

    Args:
      real: int [S], the real input, EOS at its end.
      now: int [S], what it has become.
    """
    ...

  def choices(self, token: int) -> np.ndarray:
    """Returns int [C], what may stand for a token of the real input."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class AnyTokens:
  """Every token before EOS may be replaced, by any of these, again and again.

  Attributes:
    token_ids: int [C], what inputs may be made of.
  """

  token_ids: np.ndarray

  def places(self, real: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Returns all places before EOS.

    Args:
      real: int [S].
      now: int [S].
    """
    del real
    return np.arange(len(now) - 1)

  def choices(self, token: int) -> np.ndarray:
    """Returns all tokens there are.

    Args:
      token: of the real input.
    """
    del token
    return self.token_ids


@dataclasses.dataclass(frozen=True, eq=False)
class FewWords:
  """A few words become other words, so that the text can still be read.

  As in SAME: whole words by whole words, each once, at most so many. Beyond it,
  a word's replacement may have to be near it in the space of embeddings.

  Attributes:
    words: bool [V], tokens that are a word, unless more of the word follows.
    continues: bool [V], tokens that go on with the word before them.
    keep: tokens at the beginning that stay, such as those of a task's prefix.
    share: of the tokens before EOS, how many may differ from the real input, in
      (0, 1], rounded up.
    least: so many may in any case.
    neighbours: int [V, K], for every word the words that may stand for it; None
      for all words.
  """

  words: np.ndarray
  continues: np.ndarray
  keep: int = 0
  share: float = 0.1
  least: int = 3
  neighbours: np.ndarray | None = None

  def __post_init__(self):
    """Raises ValueError for numbers that make no sense, or no words."""
    checks.check_whole(self.keep, 'keep', low=0)
    checks.check_whole(self.least, 'least', low=1)
    if not 0 < self.share <= 1:
      raise ValueError(f'share {self.share} must be in (0, 1]')
    if np.count_nonzero(self.words) < 2:
      raise ValueError(
        'the vocabulary has fewer than two tokens that are words, so that none '
        'can stand for another; replace any tokens instead (AnyTokens)'
      )

  def places(self, real: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Returns the words that are still the real ones, if more may change.

    Args:
      real: int [S].
      now: int [S].
    """
    differ = real != now
    if differ.sum() >= max(self.least, math.ceil(self.share * (len(real) - 1))):
      return np.zeros(0, int)
    whole = self.words[real[:-1]] & ~self.continues[real[1:]]
    whole[: self.keep] = False
    return np.flatnonzero(whole & ~differ[:-1])

  def choices(self, token: int) -> np.ndarray:
    """Returns the words that may stand for this one.

    Args:
      token: of the real input.
    """
    if self.neighbours is not None:
      return self.neighbours[token]
    return np.flatnonzero(self.words)


def nearest_words(
  table: np.ndarray, words: np.ndarray, number: int
) -> np.ndarray:
  """Returns the words nearest to every token by the angle of embeddings.

  Args:
    table: float [V, D].
    words: bool [V].
    number: K, of words other than the token itself.

  Returns:
    int [V, K], nearest first.

  Raises:
    ValueError: if there are not so many.
  """
  ids = np.flatnonzero(words)
  checks.check_whole(number, 'neighbours', low=1, high=max(len(ids) - 1, 1))
  lengths = np.linalg.norm(table, axis=1, keepdims=True)
  units = table / np.where(lengths > 0, lengths, 1)
  alike = units @ units[ids].T
  alike[ids, np.arange(len(ids))] = -np.inf
  return ids[np.argsort(-alike, axis=1, kind='stable')[:, :number]]

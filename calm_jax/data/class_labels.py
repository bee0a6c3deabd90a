"""Targets that are names of classes, and the numbers of these classes."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# In the context of checkpoints: the labels, and the tokens of each.
CLASS_LABELS = 'class_labels'


@dataclasses.dataclass(frozen=True)
class ClassLabels:
  """The C classes of a task, by the texts of its targets.

  Attributes:
    texts: C different ones.
    tokens: the token ids of each, EOS included, cut as targets are.
  """

  texts: tuple[str, ...]
  tokens: tuple[tuple[int, ...], ...]

  def __post_init__(self):
    """Raises ValueError for fewer than two classes, or two that look alike."""
    if len(self.texts) != len(self.tokens):
      raise ValueError(
        f'there are {len(self.texts)} texts of classes and '
        f'{len(self.tokens)} of their tokens; give one for each'
      )
    if len(self.texts) < 2:
      raise ValueError(
        f'the targets have {len(self.texts)} different texts; a classifier '
        'needs at least 2 classes'
      )
    if len({text.strip() for text in self.texts}) < len(self.texts):
      raise ValueError(
        'two classes have the same text, but for spaces around it: '
        f'{sorted(self.texts)}; name them otherwise'
      )
    seen: dict[tuple[int, ...], str] = {}
    for text, tokens in zip(self.texts, self.tokens, strict=True):
      other = seen.setdefault(tokens, text)
      if other != text or not tokens:
        raise ValueError(
          f'the classes {other!r} and {text!r} have the same tokens '
          f'{list(tokens)}, cut to the length of targets: raise '
          "FEATURE_LENGTHS['targets'], or name them otherwise"
        )

  @classmethod
  def of_targets(
    cls, targets: Iterable[tuple[str, Sequence[int]]], length: int
  ) -> 'ClassLabels':
    """Returns the classes of examples, sorted by their texts.

    Args:
      targets: text and token ids of the target of every example.
      length: T, the longest target in tokens; longer ones are cut to it.
    """
    found = {text: tuple(map(int, ids[:length])) for text, ids in targets}
    texts = sorted(found)
    return cls(tuple(texts), tuple(found[text] for text in texts))

  @classmethod
  def read(cls, context: Mapping[str, Any]) -> 'ClassLabels':
    """Returns what `context` wrote into that of a checkpoint."""
    found = context[CLASS_LABELS]
    return cls(tuple(found), tuple(tuple(ids) for ids in found.values()))

  def context(self) -> dict[str, Any]:
    """Returns what the context of a checkpoint says of them."""
    tokens = [list(ids) for ids in self.tokens]
    return {CLASS_LABELS: dict(zip(self.texts, tokens, strict=True))}

  def numbers_of(self, targets: np.ndarray) -> np.ndarray:
    """Returns the class of every row, int32 [B]; -1 of rows of padding.

    Args:
      targets: int [B, T], token ids, 0 is padding.

    Raises:
      ValueError: for a target that is no class, naming its tokens.
    """
    places = {ids: number for number, ids in enumerate(self.tokens)}
    places[()] = -1
    numbers = np.zeros(len(targets), np.int32)
    for row, ids in enumerate(np.asarray(targets)):
      key = tuple(ids[ids > 0].tolist())
      if key not in places:
        raise ValueError(
          f'the target of row {row} has the tokens {list(key)}, which are none '
          f'of the {len(self.texts)} classes ({self.texts[0]!r}, '
          f'{self.texts[1]!r}, ...) that targets of the split train name'
        )
      numbers[row] = places[key]
    return numbers

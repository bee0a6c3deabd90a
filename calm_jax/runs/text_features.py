"""How a checkpoint reads and writes text, where it does not say so itself."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self

from calm_jax.checkpoints import TextFacts
from calm_jax.tokenizer import (
  BYTES,
  Tokenizer,
  load_tokenizer,
  vocabulary_context,
)

# Rows that a table may have for no token: sizes are rounded up.
_PADDING_ROWS = 128
# Of checkpoints that do not say.
_LENGTHS = {'inputs': 512, 'targets': 128}


@dataclasses.dataclass(frozen=True)
class TextFeatures:
  """A vocabulary, and how long and with which prefix texts are.

  Attributes:
    vocabulary: a SentencePiece model, or 'bytes'.
    extra_ids: sentinels after it; T5 has 100, mT5 none, ByT5 125. What the
      checkpoint says if None, or 100 where it does not.
    feature_lengths: longest 'inputs' and 'targets' in tokens, EOS included;
      where one is not given, what the checkpoint says, or 512 and 128.
    prefix: put in front of every input; what the checkpoint says if ''.
  """

  vocabulary: str | os.PathLike
  extra_ids: int | None = None
  feature_lengths: Mapping[str, int] | None = None
  prefix: str = ''

  def agreed(self, facts: TextFacts) -> Self:
    """Returns itself, with what a checkpoint says of its tokenizer.

    Raises:
      ValueError: if it says that its vocabulary is of another kind.
    """
    if facts.is_bytes is not None and facts.is_bytes != (
      self.vocabulary == BYTES
    ):
      other = "'bytes'" if facts.is_bytes else 'its spiece.model'
      raise ValueError(
        f'the vocabulary is {self.vocabulary}, and the tokenizer_config.json '
        f'of the checkpoint says that it has another: give {other}'
      )
    if self.extra_ids is None and facts.extra_ids is not None:
      return dataclasses.replace(self, extra_ids=facts.extra_ids)
    return self

  def tokenizer(self, vocab_size: int) -> Tokenizer:
    """Returns the tokenizer for a model of V rows of embeddings.

    Raises:
      FileNotFoundError: if there is no such vocabulary.
      ValueError: if it has more ids than the model has rows.
    """
    tokenizer = load_tokenizer(
      self.vocabulary, 100 if self.extra_ids is None else self.extra_ids
    )
    if tokenizer.vocab_size > vocab_size:
      raise ValueError(
        f'{tokenizer.name} has {tokenizer.vocab_size} ids '
        f'({tokenizer.extra_ids} extra ids included), the model only '
        f'{vocab_size} rows: it is the vocabulary of another model, or '
        'extra_ids is too high'
      )
    return tokenizer

  def lengths(self, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Returns the longest inputs and targets in tokens, EOS included.

    Args:
      known: what the checkpoint says of them.

    Raises:
      ValueError: for lengths of anything else, or below 1.
    """
    lengths = {**_LENGTHS, **(known or {}), **(self.feature_lengths or {})}
    if set(lengths) != set(_LENGTHS) or min(lengths.values()) < 1:
      raise ValueError(
        f'feature_lengths is {self.feature_lengths}; give positive '
        "'inputs' and 'targets'"
      )
    return lengths

  def context(self, vocab_size: int) -> dict[str, Any]:
    """Returns what a run directory says of its texts; see `tokenizer`."""
    return {
      **vocabulary_context(self.tokenizer(vocab_size)),
      'feature_lengths': self.lengths(),
      'prefix': self.prefix,
    }


def vocabulary_doubts(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
  """Returns why this may be another model's vocabulary, in sentences."""
  spare = vocab_size - tokenizer.vocab_size
  if spare <= _PADDING_ROWS:
    return []
  return [
    f'{tokenizer.name} has {tokenizer.vocab_size} ids, and the model '
    f'{vocab_size} rows: {spare} of them would have no token, more than any '
    'padding. Unless the model was trained with this very vocabulary, all of '
    'its tokens mean something else: take the spiece.model (or '
    'tokenizer.json) of the model.'
  ]


def check_own_vocabulary(path: str | os.PathLike, tokenizer: Tokenizer) -> None:
  """Raises ValueError if a folder holds another vocabulary than the given one.

  Only files of Hugging Face's names are looked at, in local folders.
  """
  for name in ('spiece.model', 'tokenizer.json'):
    own = os.path.join(path, name)
    if not os.path.isfile(own) or tokenizer.name == BYTES:
      continue
    if os.path.samefile(own, tokenizer.name):
      return
    try:
      theirs = load_tokenizer(own, tokenizer.extra_ids)
    except ValueError:
      # Of a kind that is not read, so there is nothing to compare.
      continue
    sizes = tokenizer.vocab_size, theirs.vocab_size
    for token in range(max(sizes)):
      if (found := tokenizer.piece(token)) != theirs.piece(token):
        raise ValueError(
          f'{tokenizer.name} is not the vocabulary of this model: its token '
          f'{token} is {found!r}, that of {own} is {theirs.piece(token)!r} '
          f'({sizes[0]} and {sizes[1]} ids). Give {own}'
        )
    return

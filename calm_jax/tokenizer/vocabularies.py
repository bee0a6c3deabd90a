"""Vocabularies by name, and how a run directory remembers its own.

A vocabulary is named by the path of a SentencePiece model, or 'bytes'. A run
directory keeps a copy of the model beside its checkpoints, and their context
says what lies there and what its fingerprint must be.
"""

import os
from collections.abc import Mapping
from typing import Any

from calm_jax.tokenizer.byte_tokens import BYTES, ByteTokenizer
from calm_jax.tokenizer.interface import Tokenizer
from calm_jax.tokenizer.sentence_pieces import SentencePieceTokenizer

# The copy in a run directory.
VOCABULARY_NAME = 'vocabulary.model'


def load_tokenizer(name: str | os.PathLike, extra_ids: int = 0) -> Tokenizer:
  """Returns the tokenizer of a SentencePiece model, or of 'bytes'.

  Raises:
    FileNotFoundError, ValueError: as the tokenizers do.
  """
  if os.fspath(name) == BYTES:
    return ByteTokenizer(extra_ids)
  return SentencePieceTokenizer(name, extra_ids)


def vocabulary_context(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns what a checkpoint's context says of its vocabulary."""
  return {
    'vocabulary_file': BYTES if tokenizer.name == BYTES else VOCABULARY_NAME,
    'vocabulary_fingerprint': tokenizer.fingerprint,
    'extra_ids': tokenizer.extra_ids,
  }


def keep_vocabulary(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
  """Copies a model file into a run directory, whole or not at all.

  Nothing is copied where it lies there already, or there is no file to copy.
  """
  kept = os.path.join(directory, VOCABULARY_NAME)
  if not isinstance(tokenizer, SentencePieceTokenizer):
    return
  if _is_same(kept, tokenizer.name):
    return
  with open(f'{kept}.tmp', 'wb') as file:
    file.write(tokenizer.model_bytes)
  os.replace(f'{kept}.tmp', kept)


def find_tokenizer(
  context: Mapping[str, Any], path: str | os.PathLike
) -> Tokenizer:
  """Loads the tokenizer that a checkpoint's context names.

  Args:
    context: holds what `vocabulary_context` returned.
    path: the checkpoint or its run directory; the model file is looked for
      there and further up.

  Raises:
    FileNotFoundError: if the model file is nowhere.
    ValueError: if it is not the one the checkpoint was trained with.
  """
  name = context['vocabulary_file']
  if name != BYTES:
    if not isinstance(name, str) or os.path.basename(name) != name or not name:
      raise ValueError(
        f'{os.fspath(path)} names the vocabulary {name!r}, which is no plain '
        'name of a file: nothing outside the run directory is opened. It was '
        'altered; get it again'
      )
    name = _find_above(name, path)
  tokenizer = load_tokenizer(name, context['extra_ids'])
  if tokenizer.fingerprint != context['vocabulary_fingerprint']:
    raise ValueError(
      f'{name} is not the vocabulary of this checkpoint: its fingerprint is '
      f'{tokenizer.fingerprint}, the checkpoint was trained with '
      f'{context["vocabulary_fingerprint"]}'
    )
  return tokenizer


def _is_same(path: str, other: str) -> bool:
  return os.path.abspath(path) == os.path.abspath(other)


def _find_above(name: str, path: str | os.PathLike) -> str:
  """Returns the path of a file in a folder or the nearest one above it."""
  folder = os.path.abspath(os.fspath(path))
  while not os.path.exists(os.path.join(folder, name)):
    folder, last = os.path.split(folder)
    if not last:
      raise FileNotFoundError(
        f'no {name} in {os.fspath(path)} or above; copy the vocabulary of the '
        'training run there'
      )
  return os.path.join(folder, name)

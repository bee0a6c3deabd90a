"""Trains SentencePiece models with T5's special ids.

Padding is 0, EOS 1, unknown 2, and there is no BOS. Deterministic: the same
lines make the same file.
"""

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from calm_jax.tokenizer.sentence_pieces import SentencePieceTokenizer
from calm_jax.tokenizer.special_ids import EOS_ID, PAD_ID, UNKNOWN_ID


def train_sentencepiece(
  lines: Iterable[str],
  path: str | os.PathLike,
  *,
  vocab_size: int,
  model_type: str = 'unigram',
  byte_fallback: bool = False,
  character_coverage: float = 1.0,
  max_piece_length: int = 16,
  max_lines: int = 1_000_000,
  num_threads: int = 2,
) -> int:
  """Trains a SentencePiece model with T5's special ids.

  Deterministic for the same lines and arguments. The file appears whole or not
  at all.

  Args:
    lines: texts; only train splits belong here.
    path: the model file to write; its folder is made.
    vocab_size: pieces, the three special ones included.
    model_type: 'unigram', as T5's own, or 'bpe', which makes whole words of the
      most frequent ones even where a text has only a few hundred words.
    byte_fallback: whether characters without a piece become byte pieces (256
      more ids) instead of unknown.
    character_coverage: the share of character occurrences, in (0, 1], that
      must have a piece; lower it for scripts with thousands of characters.
    max_piece_length: characters of the longest piece.
    max_lines: texts read at most.
    num_threads: threads of the trainer.

  Returns:
    The number of pieces of the model.

  Raises:
    ValueError: if there is no text, or too little for `vocab_size` (the
      message says how many pieces it is good for).
  """
  path = os.fspath(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  least = 4 + (256 if byte_fallback else 0)
  if model_type not in ('unigram', 'bpe'):
    raise ValueError(f"model_type is {model_type!r}; use 'unigram' or 'bpe'.")
  if vocab_size < least:
    raise ValueError(f'vocab_size is {vocab_size}; it must be {least} or more.')
  # All of them now, so that what a reader raises is not taken for an error of
  # the trainer.
  texts = list(itertools.islice(_one_line_texts(lines), max_lines))
  if not texts:
    raise ValueError('There is no text to train a vocabulary on.')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.Train(
      # Not a file: the model would hold its name and so differ between runs.
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type=model_type,
      vocab_size=vocab_size,
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNKNOWN_ID,
      bos_id=-1,
      byte_fallback=byte_fallback,
      character_coverage=character_coverage,
      max_sentencepiece_length=max_piece_length,
      num_threads=num_threads,
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    raise ValueError(_training_advice(error, vocab_size)) from None
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'wb') as file:
    file.write(model.getvalue())
  os.replace(temporary, path)
  return SentencePieceTokenizer(path).vocab_size


def _one_line_texts(lines: Iterable[str]) -> Iterator[str]:
  """Yields the texts that are not blank, each on one line."""
  for line in lines:
    # The trainer takes a newline for the end of a text and refuses NUL.
    line = ' '.join(line.replace('\0', ' ').split())
    if line:
      yield line


def _training_advice(error: Exception, vocab_size: int) -> str:
  """Returns what to do about a failure of the SentencePiece trainer."""
  text = str(error).strip()
  most = re.search(r'value <= (\d+)', text)
  if 'too high' in text and most:
    return (
      f'vocab_size {vocab_size} is too high for this text: it is good for at '
      f'most {most[1]} pieces. Lower vocab_size to {most[1]} or give more text.'
    )
  if 'smaller than required_chars' in text:
    return (
      f'vocab_size {vocab_size} is too low to hold every character of this '
      f'text ({text}). Raise vocab_size, lower character_coverage, or set '
      'byte_fallback.'
    )
  return f'SentencePiece could not train {vocab_size} pieces: {text}'

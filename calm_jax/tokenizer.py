"""SentencePiece without TensorFlow, equal to seqio's vocabulary.

Decoding, serving and reports need text as ids and back, and must not load
TensorFlow for it. `SentencePieceTokenizer` gives the ids and strings of
`seqio.SentencePieceVocabulary` for the same model file and `extra_ids`;
`train_sentencepiece` makes such a model file with T5's special ids: padding 0,
EOS 1, unknown 2, no BOS.
"""

import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2


class SentencePieceTokenizer:
  """Text to ids and back, equal to seqio.SentencePieceVocabulary.

  `<extra_id_0>` has the highest id and `<extra_id_i>` the one i below it, as
  T5's span corruption numbers its sentinels.

  Attributes:
    path: the model file, as given.
    extra_ids: the number of sentinels appended to the model's pieces.
    pad_id: 0.
    eos_id: 1.
    fingerprint: hexadecimal SHA-256 of the model's bytes and `extra_ids`; two
      tokenizers with the same fingerprint give the same ids.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID

  def __init__(self, path: str | os.PathLike, extra_ids: int = 0):
    """Loads a model file.

    Args:
      path: a SentencePiece model file.
      extra_ids: sentinels to append, as for seqio; T5 uses 100.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is no SentencePiece model, is truncated, or its
        special ids are not T5's; if `extra_ids` is negative.
    """
    self.path = os.fspath(path)
    if extra_ids < 0:
      raise ValueError(f'extra_ids is {extra_ids}; it must be 0 or more.')
    self.extra_ids = extra_ids
    model_bytes = _read_model(self.path)
    self.fingerprint = hashlib.sha256(
      model_bytes + f'\0extra_ids={extra_ids}'.encode()
    ).hexdigest()
    self._processor = _load_processor(self.path, model_bytes, extra_ids)
    special = (self._processor.pad_id(), self._processor.eos_id())
    if special != (PAD_ID, EOS_ID):
      raise ValueError(
        f'{self.path} has padding and EOS ids {special}, but T5 needs '
        f'{(PAD_ID, EOS_ID)}: train the vocabulary with '
        'calm_jax.cli.build_vocabulary, or with pad_id=0, eos_id=1, unk_id=2.'
      )

  @property
  def vocab_size(self) -> int:
    """The number of ids, extra ids included."""
    return self._processor.GetPieceSize()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without EOS."""
    return self._processor.EncodeAsIds(text)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids up to the first EOS, padding left out.

    Ids at or above `vocab_size` (the padding rows of an embedding table) read
    as unknown.

    Raises:
      ValueError: if an id is negative.
    """
    kept = []
    for token in map(int, ids):
      if token < 0:
        raise ValueError(
          f'token id {token} is negative; cut positions that were never '
          'decoded before calling decode.'
        )
      if token == EOS_ID:
        break
      if token != PAD_ID:
        kept.append(token if token < self.vocab_size else UNKNOWN_ID)
    return self._processor.DecodeIds(kept)

  def piece(self, token: int) -> str:
    """Returns the piece of one id; `▁` stands for a space."""
    token = int(token)
    if not 0 <= token < self.vocab_size:
      return f'<{token}>'
    return self._processor.IdToPiece(token)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns the pieces of several ids."""
    return [self.piece(token) for token in ids]

  def __repr__(self):
    return f'SentencePieceTokenizer({self.path!r}, extra_ids={self.extra_ids})'


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


def _read_model(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return file.read()
  except FileNotFoundError:
    raise FileNotFoundError(
      f'There is no SentencePiece model at {path}. Make one with '
      'python -m calm_jax.cli.build_vocabulary --input=train.jsonl.gz '
      f'--output={path} --vocab_size=2000.'
    ) from None
  except IsADirectoryError:
    raise ValueError(
      f'{path} is a folder; name the .model file in it.'
    ) from None


def _load_processor(path, model_bytes, extra_ids):
  """Returns a processor of the model with sentinels appended."""
  model = sentencepiece_model_pb2.ModelProto()
  processor = sentencepiece.SentencePieceProcessor()
  try:
    model.ParseFromString(model_bytes)
    # seqio appends them last to first, so that <extra_id_0> is the last id.
    for index in reversed(range(extra_ids)):
      model.pieces.add(
        piece=f'▁<extra_id_{index}>',
        score=0.0,
        type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
      )
    if len(model.pieces) <= extra_ids:
      raise ValueError('it holds no pieces')
    if not model.HasField('trainer_spec'):
      raise ValueError('it ends before its last part')
    processor.LoadFromSerializedProto(model.SerializeToString())
  except Exception as error:  # protobuf's and SentencePiece's own types
    raise ValueError(
      f'{path} ({len(model_bytes)} bytes) is not a whole SentencePiece model '
      f'({error}). Copy it again or rebuild it with '
      'python -m calm_jax.cli.build_vocabulary.'
    ) from None
  return processor


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

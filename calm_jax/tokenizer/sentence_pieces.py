"""SentencePiece without TensorFlow, equal to seqio.SentencePieceVocabulary.

The ids and strings are those that seqio gives for the same model file and
`extra_ids`.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from calm_jax.tokenizer.characters import split_characters
from calm_jax.tokenizer.huggingface_json import sentencepiece_model
from calm_jax.tokenizer.interface import Span
from calm_jax.tokenizer.special_ids import EOS_ID, PAD_ID, spoken


class SentencePieceTokenizer:
  """Text to ids and back, equal to seqio.SentencePieceVocabulary.

  `<extra_id_0>` has the highest id and `<extra_id_i>` the one i below it, as
  T5's span corruption numbers its sentinels.

  Attributes:
    name: the path of the model file, as given.
    extra_ids: the number of sentinels appended to the model's pieces.
    pad_id: 0.
    eos_id: 1.
    model_bytes: the SentencePiece model; of a tokenizer.json, what it says.
    fingerprint: hexadecimal SHA-256 of the model's bytes and `extra_ids`; two
      tokenizers with the same fingerprint give the same ids.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID

  def __init__(self, path: str | os.PathLike, extra_ids: int = 0):
    """Loads a model file.

    Args:
      path: a SentencePiece model file, or the tokenizer.json of a T5 that
        transformers saved.
      extra_ids: sentinels to append, as for seqio; T5 uses 100.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is no SentencePiece model, is truncated, or its
        special ids are not T5's; if `extra_ids` is negative.
    """
    self.name = os.path.expanduser(path)
    if extra_ids < 0:
      raise ValueError(f'extra_ids is {extra_ids}; it must be 0 or more.')
    self.extra_ids = extra_ids
    self.model_bytes = model_bytes = _read_model(self.name)
    self.fingerprint = hashlib.sha256(
      model_bytes + f'\0extra_ids={extra_ids}'.encode()
    ).hexdigest()
    self._processor = _load_processor(self.name, model_bytes, extra_ids)
    special = (self._processor.pad_id(), self._processor.eos_id())
    if special != (PAD_ID, EOS_ID):
      raise ValueError(
        f'{self.name} has padding and EOS ids {special}, but T5 needs '
        f'{(PAD_ID, EOS_ID)}: a model that was trained with it has other ids '
        'and is not read. For one that is yet to be trained, make a vocabulary '
        'with calm_jax.cli.build_vocabulary, or with pad_id=0, eos_id=1, '
        'unk_id=2.'
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
    return self._processor.DecodeIds(
      [token for _, token in spoken(ids, self.vocab_size)]
    )

  def piece(self, token: int) -> str:
    """Returns the piece of one id; `▁` stands for a space."""
    token = int(token)
    if not 0 <= token < self.vocab_size:
      return f'<{token}>'
    return self._processor.IdToPiece(token)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """Returns the pieces of several ids."""
    return [self.piece(token) for token in ids]

  def spans(self, ids: Sequence[int]) -> list[Span]:
    """Returns which characters of `decode(ids)` each id stands for."""
    kept = spoken(ids, self.vocab_size)
    read = [token for _, token in kept]
    ends = [0]
    spans: dict[int, Span] = {}
    for first, last in self._runs(read):
      # Text only grows from run to run; how pieces and spaces become text is
      # the processor's to know.
      ends.append(len(self._processor.DecodeIds(read[:last])))
      if self._processor.IsByte(read[first]):
        within = self._byte_spans(read[first:last], *ends[-2:])
      else:
        within = [(ends[-2], ends[-1])]
      for (place, _), span in zip(kept[first:last], within, strict=True):
        spans[place] = span
    end, filled = 0, []
    for place in range(len(ids)):
      span = spans.get(place, (end, end))
      filled.append(span)
      end = span[1]
    return filled

  def _runs(self, ids: list[int]) -> Iterator[tuple[int, int]]:
    """Yields [first, last) of single pieces and of runs of byte pieces."""
    first = 0
    for is_byte, run in itertools.groupby(ids, self._processor.IsByte):
      size = len(list(run))
      step = size if is_byte else 1
      for start in range(first, first + size, step):
        yield start, start + step
      first += size

  def _byte_spans(self, ids: list[int], start: int, end: int) -> list[Span]:
    """Returns the spans of byte pieces (`<0xC3>`) that made [start, end)."""
    text = bytes(int(self.piece(token)[3:5], 16) for token in ids)
    spans: list[Span] = []
    for size, _ in split_characters(text):
      # A byte of no character is written as one replacement character.
      spans += [(min(start, end), min(start + 1, end))] * size
      start += 1
    return spans

  def __repr__(self):
    return f'SentencePieceTokenizer({self.name!r}, extra_ids={self.extra_ids})'


def _read_model(path: str) -> bytes:
  """Returns the bytes of a model; those of a tokenizer.json made into one."""
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except FileNotFoundError:
    raise FileNotFoundError(_not_there(path)) from None
  except IsADirectoryError:
    there = _vocabularies(path) or ['the .model file in it']
    raise ValueError(f'{path} is a folder; name {there[0]}.') from None
  if content.startswith(b'version https://git-lfs'):
    raise ValueError(
      f'{path} is a pointer of Git LFS, not the file itself: get it with '
      'git lfs pull.'
    )
  if content.lstrip()[:1] == b'{':
    return sentencepiece_model(path, content)
  return content


def _not_there(path: str) -> str:
  """Returns what to name instead, or what makes a vocabulary."""
  missing = f'There is no SentencePiece model at {path}.'
  if beside := _vocabularies(os.path.dirname(path) or '.'):
    return f'{missing} Name {beside[0]}, which is there.'
  return (
    f'{missing} A trained model needs the one that it was trained with: the '
    'spiece.model of the model, or of the one that it was fine-tuned from. '
    'For a model that is yet to be trained, make one with '
    'python -m calm_jax.cli.build_vocabulary --input=train.jsonl.gz '
    f'--output={path} --vocab_size=2000.'
  )


def _vocabularies(folder: str) -> list[str]:
  """Returns the vocabularies of a folder, by their usual names."""
  names = ('spiece.model', 'sentencepiece.model', 'tokenizer.json')
  paths = (os.path.join(folder, name) for name in names)
  return [path for path in paths if os.path.isfile(path)]


def _load_processor(path, model_bytes, extra_ids):
  """Returns a processor of the model with sentinels appended."""
  model = sentencepiece_model_pb2.ModelProto()
  processor = sentencepiece.SentencePieceProcessor()
  own: list[str] = []
  try:
    model.ParseFromString(model_bytes)
    own = [piece.piece for piece in model.pieces if '<extra_id_' in piece.piece]
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
    if own and extra_ids:
      raise ValueError(
        f'{path} has {len(own)} sentinels of its own, as that of mT5 has: '
        f'extra_ids must be 0, not {extra_ids}'
      ) from None
    raise ValueError(
      f'{path} ({len(model_bytes)} bytes) is not a whole SentencePiece model '
      f'({error}). Get it again from where it came: a model needs the very '
      'vocabulary that it was trained with.'
    ) from None
  return processor

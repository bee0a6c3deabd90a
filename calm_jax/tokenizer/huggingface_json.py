"""tokenizer.json, the vocabulary of transformers, as a SentencePiece model.

transformers 5 saves a T5's vocabulary in this form alone. Of SentencePiece's
unigram models it holds everything: pieces, scores and the normaliser's table.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any

from sentencepiece import sentencepiece_model_pb2

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
# Those of T5; mT5's model has its own, each with a space before it.
_SENTINEL = re.compile(r'<extra_id_\d+>')
_OWN_SENTINEL = re.compile(r'▁<extra_id_\d+>')
_SPECIAL = {0: _Piece.CONTROL, 1: _Piece.CONTROL, 2: _Piece.UNKNOWN}
_BYTE = re.compile(r'<0x[0-9A-F]{2}>')


def sentencepiece_model(path: str, content: bytes) -> bytes:
  """Returns the SentencePiece model that a tokenizer.json was made from.

  Sentinels (`<extra_id_0>`) at its end are left out: they are appended to a
  model by `extra_ids`.

  Args:
    path: of the file, for messages.
    content: what it holds.

  Raises:
    ValueError: if it is no tokenizer.json, or of another kind than T5's.
  """
  try:
    fields = json.loads(content)
    kind = fields['model']['type']
    vocabulary = fields['model']['vocab']
  except (KeyError, RecursionError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path} is no tokenizer.json ({error!r:.100}); get it again, or name a '
      'SentencePiece model'
    ) from None
  if kind != 'Unigram' or not isinstance(vocabulary, list):
    raise ValueError(
      f"{path} is a tokenizer of kind {kind!r}, not T5's (Unigram): name the "
      "model's own spiece.model"
    )
  try:
    pieces = [(str(piece), float(score)) for piece, score in vocabulary]
  except (TypeError, ValueError):
    raise ValueError(
      f'{path}: its vocabulary is damaged; get it again'
    ) from None
  while len(pieces) > 3 and _SENTINEL.fullmatch(pieces[-1][0]):
    pieces.pop()
  special = [piece for piece, _ in pieces[:3]]
  if special != ['<pad>', '</s>', '<unk>']:
    raise ValueError(
      f"{path} begins with the pieces {special}; T5's begin with <pad>, </s> "
      'and <unk>. Name the spiece.model of the model that it is of (one of a '
      'model with other special ids is not read)'
    )
  return _model(pieces, fields).SerializeToString()


def _model(pieces: list[tuple[str, float]], fields: dict[str, Any]):
  """Returns the model of pieces and of what stands around them."""
  model = sentencepiece_model_pb2.ModelProto()
  fallback = bool(fields['model'].get('byte_fallback'))
  for number, (piece, score) in enumerate(pieces):
    kind = _SPECIAL.get(number, _Piece.NORMAL)
    if fallback and _BYTE.fullmatch(piece):
      kind = _Piece.BYTE
    elif _OWN_SENTINEL.fullmatch(piece):
      kind = _Piece.USER_DEFINED
    model.pieces.add(piece=piece, score=score, type=kind)
  trainer = model.trainer_spec
  trainer.model_type = trainer.UNIGRAM
  trainer.vocab_size = len(pieces)
  trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
  trainer.byte_fallback = fallback
  normalizer = model.normalizer_spec
  tables = list(_tables(fields.get('normalizer')))
  normalizer.name = 'nmt_nfkc' if tables else 'identity'
  normalizer.precompiled_charsmap = tables[0] if tables else b''
  normalizer.add_dummy_prefix = True
  normalizer.remove_extra_whitespaces = True
  normalizer.escape_whitespaces = True
  return model


def _tables(normalizer: Any) -> Iterator[bytes]:
  """Yields the tables of characters in a normaliser, however nested."""
  if not isinstance(normalizer, dict):
    return
  for inner in normalizer.get('normalizers') or ():
    yield from _tables(inner)
  table = normalizer.get('precompiled_charsmap')
  if normalizer.get('type') == 'Precompiled' and isinstance(table, str):
    try:
      yield base64.b64decode(table, validate=True)
    except binascii.Error:
      return

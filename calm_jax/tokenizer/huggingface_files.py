"""A tokenizer written for transformers, which then gives the same ids.

Its T5Tokenizer reads spiece.model, as a unigram model without byte pieces. Of
other models it would make other tokens in silence, so a tokenizer.json that
says all of it is written for these, which the general class reads.
"""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from calm_jax.tokenizer.byte_tokens import ByteTokenizer
from calm_jax.tokenizer.interface import Tokenizer
from calm_jax.tokenizer.sentence_pieces import SentencePieceTokenizer

_SPECIAL = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}


def write_huggingface_files(
  tokenizer: Tokenizer, folder: str | os.PathLike
) -> None:
  """Writes spiece.model and tokenizer_config.json into an existing folder.

  Sentinels and special tokens inside of words differ: transformers takes them
  for tokens wherever they stand.

  Raises:
    ValueError: if it is a tokenizer of another kind.
  """
  config: dict[str, Any] = {**_SPECIAL, 'extra_ids': tokenizer.extra_ids}
  if isinstance(tokenizer, ByteTokenizer):
    config['tokenizer_class'] = 'ByT5Tokenizer'
  elif isinstance(tokenizer, SentencePieceTokenizer):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.model_bytes)
    with open(os.path.join(folder, 'spiece.model'), 'wb') as file:
      file.write(tokenizer.model_bytes)
    spec = model.trainer_spec
    if spec.model_type == spec.UNIGRAM and not spec.byte_fallback:
      config |= {'tokenizer_class': 'T5Tokenizer', 'legacy': False}
    else:
      config['tokenizer_class'] = 'PreTrainedTokenizerFast'
      _write(folder, 'tokenizer.json', _whole(model, tokenizer.extra_ids))
  else:
    raise ValueError(
      f'transformers has no tokenizer for a {type(tokenizer).__name__}'
    )
  _write(folder, 'tokenizer_config.json', config)


def _write(folder: str | os.PathLike, name: str, fields: Any) -> None:
  with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
    json.dump(fields, file, indent=2, ensure_ascii=False)
    file.write('\n')


def _whole(model: Any, extra_ids: int) -> dict[str, Any]:
  """Returns the tokenizer.json of a model with sentinels."""
  spec, table = model.trainer_spec, model.normalizer_spec.precompiled_charsmap
  pieces = [(piece.piece, piece.score) for piece in model.pieces]
  if spec.model_type == spec.BPE:
    core = {
      'type': 'BPE',
      'vocab': {piece: number for number, (piece, _) in enumerate(pieces)},
      'merges': list(_merges(pieces)),
      'unk_token': '<unk>',
      'fuse_unk': True,
    }
  else:
    core = {'type': 'Unigram', 'vocab': pieces, 'unk_id': 2}
  metaspace = {
    'type': 'Metaspace',
    'replacement': '▁',
    'prepend_scheme': 'always',
    'split': True,
  }
  named = ['<pad>', '</s>', '<unk>']
  last = len(pieces) + extra_ids - 1
  added = [*enumerate(named)] + [
    (number, f'<extra_id_{last - number}>')
    for number in range(len(pieces), last + 1)
  ]
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [_added(number, name) for number, name in added],
    'normalizer': {
      'type': 'Precompiled',
      'precompiled_charsmap': base64.b64encode(table).decode(),
    }
    if table
    else None,
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': [{'type': 'WhitespaceSplit'}, metaspace],
    },
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': [_sequence('A'), _end()],
      'pair': [_sequence('A'), _end(), _sequence('B'), _end()],
      'special_tokens': {
        '</s>': {'id': '</s>', 'ids': [1], 'tokens': ['</s>']}
      },
    },
    'decoder': {
      'type': 'Sequence',
      'decoders': [{'type': 'ByteFallback'}, metaspace],
    },
    'model': {**core, 'byte_fallback': bool(spec.byte_fallback)},
  }


def _added(number: int, name: str) -> dict[str, Any]:
  return {
    'id': number,
    'content': name,
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }


def _sequence(name: str) -> dict[str, Any]:
  return {'Sequence': {'id': name, 'type_id': 0}}


def _end() -> dict[str, Any]:
  return {'SpecialToken': {'id': '</s>', 'type_id': 0}}


def _merges(pieces: list[tuple[str, float]]) -> Iterator[list[str]]:
  """Yields the pairs that pieces are merged from, the first one first.

  SentencePiece merges the neighbours whose joined piece has the best score, so
  every division of a piece into two pieces is a merge of its rank.
  """
  known = {piece for piece, _ in pieces}
  ranked = sorted(pieces, key=lambda piece: -piece[1])
  for piece, _ in ranked:
    for place in range(1, len(piece)):
      if piece[:place] in known and piece[place:] in known:
        yield [piece[:place], piece[place:]]

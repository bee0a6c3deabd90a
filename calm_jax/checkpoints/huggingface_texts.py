"""What a folder of Hugging Face's says of texts: its tokenizer, in three files.

tokenizer_config.json and added_tokens.json (version 4 of transformers) and
tokenizer.json (all that version 5 writes) say which vocabulary the model has
and which tokens were added to it. None of them is needed to load parameters.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from calm_jax.checkpoints.huggingface_weights import read_json
from calm_jax.checkpoints.storage import Folder

CONFIG = 'tokenizer_config.json'
ADDED = 'added_tokens.json'
TOKENIZER = 'tokenizer.json'
SENTENCEPIECE = 'spiece.model'
# What transformers' tokenizers are made from, in either direction.
FILES = (SENTENCEPIECE, TOKENIZER, CONFIG, 'special_tokens_map.json', ADDED)
_SENTINEL = re.compile(r'▁?<extra_id_(\d+)>')
_OWN = ('<pad>', '</s>', '<unk>')


@dataclasses.dataclass(frozen=True)
class TextFacts:
  """What a checkpoint says of its own tokenizer; nothing where it is silent.

  Attributes:
    is_bytes: whether it is ByT5's, which has no vocabulary; None if not said.
    extra_ids: sentinels after the vocabulary.
    added: tokens that were added to it, with their ids.
  """

  is_bytes: bool | None = None
  extra_ids: int | None = None
  added: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read_facts(
  folder: Folder, names: Collection[str], notes: list[str]
) -> TextFacts:
  """Returns what the tokenizer's files say; notes are added.

  A file that is damaged is told and passed over: parameters do not need it.
  """
  config = _read(folder, CONFIG, names, notes)
  tokens: dict[str, int] = {}
  tokens |= _added(_read(folder, TOKENIZER, names, notes).get('added_tokens'))
  decoder = config.get('added_tokens_decoder')
  if isinstance(decoder, dict):
    tokens |= _added(
      [
        {**entry, 'id': token}
        for token, entry in decoder.items()
        if isinstance(entry, dict)
      ]
    )
  listed = _read(folder, ADDED, names, notes)
  tokens |= _added([{'id': i, 'content': name} for name, i in listed.items()])
  sentinels = {
    int(match[1]): token
    for name, token in tokens.items()
    if (match := _SENTINEL.fullmatch(name))
  }
  added = {
    name: token
    for name, token in sorted(tokens.items(), key=lambda item: item[1])
    if name not in _OWN and not _SENTINEL.fullmatch(name)
  }
  kind = config.get('tokenizer_class')
  is_bytes = None if kind is None else str(kind).startswith('ByT5')
  extra_ids = config.get('extra_ids')
  if not isinstance(extra_ids, int) or isinstance(extra_ids, bool):
    extra_ids = len(sentinels) or None
  if added:
    shown = ', '.join(f'{name!r} {i}' for name, i in list(added.items())[:5])
    notes.append(
      f'{len(added)} tokens were added to the vocabulary ({shown}'
      f'{", ..." if len(added) > 5 else ""}): SentencePiece lacks them, so '
      'that inputs spell them out and outputs show them as unknown.'
    )
  last = max(sentinels.values(), default=0)
  if not is_bytes and any(last - n != i for n, i in sentinels.items()):
    notes.append(
      '<extra_id_0> is not the last of the sentinels, as it is in T5: texts '
      'that hold them get other ids here.'
    )
  return TextFacts(is_bytes, extra_ids, added)


def _read(
  folder: Folder, name: str, names: Collection[str], notes: list[str]
) -> dict[str, Any]:
  if name not in names:
    return {}
  try:
    return read_json(folder, name)
  except ValueError as error:
    notes.append(f'{name} is left aside: {error}.')
    return {}


def _added(entries: Any) -> dict[str, int]:
  """Returns the tokens of a list of entries by their text."""
  found = {}
  for entry in entries if isinstance(entries, list) else ():
    try:
      found[str(entry['content'])] = int(entry['id'])
    except (KeyError, TypeError, ValueError):
      continue
  return found

"""Vocabularies for transformers and from it: the same ids for the same text."""

import json
import random

import pytest

from calm_jax.tokenizer import (
  ByteTokenizer,
  SentencePieceTokenizer,
  keep_vocabulary,
  train_sentencepiece,
  write_huggingface_files,
)
from calm_jax.tokenizer import huggingface_files as files

TEXTS = (
  '',
  'Anna buys forty seven apples.',
  'two  spaces and a trailing one ',
  'tab\tand\nnewline\u00a0x',
  'Äpfel, Straße, naïve café — “quotes” ½ ﬁne ＡＢＣ',
  '日本語 и кириллица 🙂',
  'a <extra_id_3> b',
  '<extra_id_0> first and <extra_id_9> last',
)
KINDS = {
  'unigram': dict(vocab_size=80),
  'bpe': dict(vocab_size=90, model_type='bpe'),
  'byte_fallback': dict(vocab_size=340, byte_fallback=True),
}


def sentences():
  draw = random.Random(0)
  nouns = 'apples books Äpfel Straße candles naïveté tickets stones'.split()
  for number in range(400):
    yield f'{draw.choice(nouns)} {number} and {draw.choice(nouns)}.'


def texts():
  draw = random.Random(1)
  yield from TEXTS
  for _ in range(60):
    yield ''.join(draw.choices('ab eäß,.39Ω🙂_ ', k=draw.randint(0, 30)))


@pytest.fixture(scope='module', params=[*KINDS, 'bytes'])
def written(request, tmp_path_factory):
  """A tokenizer and the folder that its files were written into."""
  folder = tmp_path_factory.mktemp(request.param)
  if request.param == 'bytes':
    tokenizer = ByteTokenizer(125)
  else:
    path = folder / 'vocab.model'
    train_sentencepiece(sentences(), path, **KINDS[request.param])
    tokenizer = SentencePieceTokenizer(path, 10)
  (folder / 'hf').mkdir()
  write_huggingface_files(tokenizer, folder / 'hf')
  return tokenizer, folder / 'hf'


def test_transformers_gives_the_same_ids(written):
  transformers = pytest.importorskip('transformers')
  tokenizer, folder = written
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  assert len(theirs) == tokenizer.vocab_size
  for text in texts():
    if tokenizer.name == 'bytes' and '<extra' in text:
      continue
    assert theirs(text).input_ids == [*tokenizer.encode(text), 1], text


def test_what_transformers_saves_is_read(written, tmp_path):
  """Version 5 leaves tokenizer.json alone, without spiece.model."""
  transformers = pytest.importorskip('transformers')
  tokenizer, folder = written
  if tokenizer.name == 'bytes':
    pytest.skip('bytes have no vocabulary')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  theirs.save_pretrained(tmp_path)
  assert not (tmp_path / 'spiece.model').exists()
  if _kind(tmp_path / 'tokenizer.json') == 'BPE':
    pytest.skip('BPE is not read, see test_kinds_that_are_not_read')
  again = SentencePieceTokenizer(tmp_path / 'tokenizer.json', 10)
  for text in texts():
    assert again.encode(text) == tokenizer.encode(text), text


def test_the_files(written):
  tokenizer, folder = written
  names = {path.name for path in folder.iterdir()}
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  assert config['extra_ids'] == tokenizer.extra_ids
  if tokenizer.name == 'bytes':
    assert names == {'tokenizer_config.json'}
    assert config['tokenizer_class'] == 'ByT5Tokenizer'
    return
  # T5Tokenizer knows neither BPE nor byte pieces, and does not say so.
  plain = config['tokenizer_class'] == 'T5Tokenizer'
  assert plain == (tokenizer.vocab_size == 90)
  assert ('tokenizer.json' in names) != plain
  copy = SentencePieceTokenizer(folder / 'spiece.model', 10)
  assert copy.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize('kind', ['unigram', 'byte_fallback'])
def test_a_tokenizer_json_is_the_model_it_was_made_from(kind, tmp_path):
  path = tmp_path / 'vocab.model'
  train_sentencepiece(sentences(), path, **KINDS[kind])
  tokenizer = SentencePieceTokenizer(path, 10)
  model = files.sentencepiece_model_pb2.ModelProto()
  model.ParseFromString(tokenizer.model_bytes)
  json_path = tmp_path / 'tokenizer.json'
  json_path.write_text(json.dumps(files._whole(model, 10)), encoding='utf-8')
  again = SentencePieceTokenizer(json_path, 10)
  assert again.vocab_size == tokenizer.vocab_size
  every = range(tokenizer.vocab_size)
  assert again.pieces(every) == tokenizer.pieces(every)
  for text in texts():
    ids = tokenizer.encode(text)
    assert again.encode(text) == ids, text
    assert again.decode(ids) == tokenizer.decode(ids), text
  # A run directory keeps the model, whatever it was read from.
  (tmp_path / 'run').mkdir()
  keep_vocabulary(again, tmp_path / 'run')
  kept = SentencePieceTokenizer(tmp_path / 'run' / 'vocabulary.model', 10)
  assert kept.fingerprint == again.fingerprint


def test_kinds_that_are_not_read(written):
  _, folder = written
  path = folder / 'tokenizer.json'
  if not path.exists() or _kind(path) == 'Unigram':
    pytest.skip('of another kind')
  with pytest.raises(ValueError, match="kind 'BPE'.*own spiece.model"):
    SentencePieceTokenizer(path)


def _kind(path):
  return json.loads(path.read_text(encoding='utf-8'))['model']['type']

"""A vocabulary and the checkpoint that it is given for: do they fit?"""

import dataclasses
import json
import logging

import pytest
from cases import checkpoint_cases as cases

from calm_jax import checkpoints, runs
from calm_jax.cli import convert
from calm_jax.tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
  write_huggingface_files,
)


def sentences(words):
  return [f'{word} {number} {word}s' for word in words for number in range(40)]


@pytest.fixture(scope='module')
def vocabularies(tmp_path_factory):
  """Two vocabularies of one size."""
  folder = tmp_path_factory.mktemp('vocabularies')
  for name, words in (('one', ['tree', 'house']), ('two', ['light', 'stone'])):
    train_sentencepiece(sentences(words), folder / name, vocab_size=25)
  return folder / 'one', folder / 'two'


@pytest.fixture
def folder(tmp_path, vocabularies):
  """A folder of Hugging Face's with 40 rows and its own spiece.model."""
  config = dataclasses.replace(cases.SMALL, vocab_size=40)
  cases.write(config, tmp_path / 'hf', 'huggingface')
  tokenizer = SentencePieceTokenizer(vocabularies[0], 4)
  write_huggingface_files(tokenizer, tmp_path / 'hf')
  return tmp_path / 'hf'


def test_the_folder_says_how_many_sentinels(folder, vocabularies):
  loaded = runs.load(folder, folder / 'spiece.model')
  assert loaded.tokenizer.extra_ids == 4 and loaded.notes == ()
  assert runs.load(folder, vocabularies[0]).tokenizer.extra_ids == 4
  assert (
    runs.load(folder, vocabularies[0], extra_ids=3).tokenizer.extra_ids == 3
  )


def test_another_vocabulary_is_refused(folder, vocabularies):
  with pytest.raises(ValueError, match=r'token 3 is .* Give .*hf/spiece.model'):
    runs.load(folder, vocabularies[1])
  with pytest.raises(ValueError, match='Give .*hf/spiece.model'):
    convert.run(
      str(folder),
      str(folder.parent / 'run'),
      checkpoints.Target(format='calm_jax'),
      texts=runs.TextFeatures(vocabularies[1]),
    )
  with pytest.raises(ValueError, match='another: give its spiece.model'):
    runs.load(folder, 'bytes', extra_ids=0)
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps({'tokenizer_class': 'ByT5Tokenizer'}))
  with pytest.raises(ValueError, match="another: give 'bytes'"):
    runs.load(folder, folder / 'spiece.model')


def test_a_table_that_is_far_too_large_is_doubted(
  tmp_path, vocabularies, caplog
):
  for rows, doubted in ((29 + 128, False), (29 + 129, True)):
    config = dataclasses.replace(cases.SMALL, vocab_size=rows)
    path = cases.write(config, tmp_path / str(rows), 'huggingface')
    with caplog.at_level(logging.WARNING):
      loaded = runs.load(path, vocabularies[0], extra_ids=4)
    assert [note[-9:] for note in loaded.notes] == ['he model.'] * doubted
    assert ('129 of them would have no token' in caplog.text) == doubted

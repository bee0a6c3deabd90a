"""A small JSONL task on disk, shared by the tests of calm_jax.data."""

import gzip
import json
import random

import pytest

WORDS = 'red green blue black white apple pear plum house river'.split()


def rows(seed, count, references=1):
  rng = random.Random(seed)
  made = []
  for index in range(count):
    chosen = rng.choices(WORDS, k=rng.randint(1, 12))
    row = {
      'inputs': f'{seed} {index} ' + ' '.join(chosen),
      'targets': ' '.join(reversed(chosen)),
    }
    if references > 1:
      number = rng.randint(1, references)
      row['references'] = [row['targets'], *(f'r{i}' for i in range(number))]
    made.append(row)
  return made


@pytest.fixture(scope='session')
def jsonl_files(tmp_path_factory):
  """Paths of train (plain), validation and test (gzip'd) files, and a model."""
  pytest.importorskip('seqio')
  from calm_jax.tokenizer import train_sentencepiece

  folder = tmp_path_factory.mktemp('jsonl')
  paths = {}
  for seed, (name, count) in enumerate(
    (('train', 200), ('validation', 30), ('test', 60))
  ):
    made = rows(seed, count, 1 if name == 'train' else 4)
    data = ''.join(json.dumps(row) + '\n' for row in made).encode()
    path = folder / f'{name}.jsonl'
    if name != 'train':
      path, data = folder / f'{name}.jsonl.gz', gzip.compress(data)
    path.write_bytes(data)
    paths[name] = str(path)
  vocabulary = str(folder / 'vocab.model')
  train_sentencepiece(
    (row[field] for row in rows(0, 200) for field in ('inputs', 'targets')),
    vocabulary,
    vocab_size=50,
  )
  return paths, vocabulary


@pytest.fixture(scope='session')
def tfds_directory(tmp_path_factory):
  """A folder with the paper's three data sets, a few rows each."""
  pytest.importorskip('seqio')
  from fakes import tfds_fakes

  folder = tmp_path_factory.mktemp('tfds')
  for make in (tfds_fakes.squad, tfds_fakes.cnn_dailymail, tfds_fakes.wmt15):
    make(folder)
  return str(folder)

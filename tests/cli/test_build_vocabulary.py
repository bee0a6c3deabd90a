"""The build_vocabulary command, run as a user runs it."""

import json

import pytest
from tools.mains import run_main

from calm_jax.tokenizer import SentencePieceTokenizer


@pytest.fixture
def train_file(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(
    ''.join(
      json.dumps({'inputs': f'word {n} apple', 'targets': f'Äpfel {n}'}) + '\n'
      for n in range(300)
    ),
    encoding='utf-8',
  )
  return path


def test_builds_a_vocabulary(train_file, tmp_path):
  output = tmp_path / 'new' / 'vocab.model'
  result = run_main(
    'build_vocabulary',
    f'--input={train_file},{train_file}',
    f'--output={output}',
    '--vocab_size=40',
    '--prefix=translate: ',
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout == f'{output}: 40 pieces\n' and not result.stderr
  tokenizer = SentencePieceTokenizer(output)
  text = 'translate: word Äpfel'
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_errors_are_one_line(train_file, tmp_path):
  output = tmp_path / 'vocab.model'
  train_file.write_text(train_file.read_text() + '{"inputs\n')
  for arguments, message in (
    ([f'--input={tmp_path}/none.jsonl'], 'none.jsonl'),
    ([f'--input={train_file}'], 'train.jsonl line 301'),
  ):
    result = run_main('build_vocabulary', *arguments, f'--output={output}')
    assert result.returncode == 1
    assert message in result.stderr and 'Traceback' not in result.stderr
    assert not output.exists()


def test_help_explains():
  result = run_main('build_vocabulary', '--help')
  assert '--vocab_size' in result.stdout and 'train files' in result.stdout

"""Reading JSONL files, and naming what is wrong in them."""

import gzip
import json

import pytest

from calm_jax.data.jsonl_files import read_examples, resolve_path

ROWS = [
  {'inputs': 'a', 'targets': 'ä'},
  {'inputs': 'b', 'targets': 'x', 'references': ['x', 'y']},
]


def write(path, rows):
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows),
    encoding='utf-8',
  )
  return path


def test_plain_and_gzip_read_alike(tmp_path):
  plain = write(tmp_path / 'plain.jsonl', ROWS)
  packed = tmp_path / 'packed.anything'
  packed.write_bytes(gzip.compress(plain.read_bytes()))
  examples = list(read_examples(plain))
  assert examples == list(read_examples(packed))
  assert examples[0].references == ('ä',)
  assert examples[1].references == ('x', 'y')


def test_blank_lines_are_skipped(tmp_path):
  path = tmp_path / 'blank.jsonl'
  path.write_text('\n' + json.dumps(ROWS[0]) + '\n\n')
  assert len(list(read_examples(path))) == 1


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"inputs": "a", ', 'not valid JSON'),
    ('["a", "b"]', 'not an object'),
    ('{"inputs": "a"}', '"targets" is missing'),
    ('{"inputs": 3, "targets": "x"}', '"inputs" is 3'),
    ('{"inputs": "  ", "targets": "x"}', '"inputs" is empty'),
    ('{"inputs": "a", "targets": ""}', '"targets" is empty'),
    ('{"inputs": "a", "targets": "x", "references": "x"}', 'list of texts'),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = tmp_path / 'bad.jsonl'
  path.write_text(json.dumps(ROWS[0]) + '\n' + line + '\n')
  with pytest.raises(ValueError, match=f'bad.jsonl line 2.*{message}'):
    list(read_examples(path))


def test_bad_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='none.jsonl'):
    list(read_examples(tmp_path / 'none.jsonl'))
  empty = tmp_path / 'empty.jsonl'
  for content in ('', '\n \n'):
    empty.write_text(content)
    with pytest.raises(ValueError, match='has no rows'):
      list(read_examples(empty))
  whole = gzip.compress(write(tmp_path / 'p', ROWS * 500).read_bytes())
  cut = tmp_path / 'cut.gz'
  cut.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match='truncated gzip'):
    list(read_examples(cut))
  latin = tmp_path / 'latin.jsonl'
  latin.write_bytes('{"inputs": "é", "targets": "x"}'.encode('latin-1'))
  with pytest.raises(ValueError, match='not UTF-8'):
    list(read_examples(latin))


def test_resolve_path(monkeypatch):
  monkeypatch.setenv('DATA', '/data')
  monkeypatch.setenv('HOME', '/home/me')
  assert resolve_path('a.jsonl', '$DATA/x') == '/data/x/a.jsonl'
  assert resolve_path('/b/a.jsonl', '$DATA') == '/b/a.jsonl'
  assert resolve_path('~/a.jsonl') == '/home/me/a.jsonl'

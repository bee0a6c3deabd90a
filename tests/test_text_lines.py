"""Training and decoding read the same lines, and refuse the same."""

import gzip
import io
import itertools

import pytest

from calm_jax import text_lines
from calm_jax.data.jsonl_files import read_examples
from calm_jax.pipeline.files import input_lines

GOOD = b'{"inputs": "a \xc3\xa4", "targets": "b"}'
BAD = {
  'half a pair': b'{"inputs": "a \\ud83d", "targets": "b"}',
  'half a pair elsewhere': b'{"inputs": "a", "targets": "b", "x": "\\udc00"}',
  'deep': b'[' * 100_000,
  'an array': b'[{"inputs": "a", "targets": "b"}]',
  'a number': b'3',
  'no JSON': b'{"inputs": "a"',
  'no UTF-8': b'{"inputs": "\xff", "targets": "b"}',
  'UTF-16': '{"inputs": "a"}'.encode('utf-16'),
  'no text': b'{"inputs": " ", "targets": "b"}',
  'another key': b'{"source": "a", "targets": "b"}',
}


def trained_on(path):
  return [example.inputs for example in read_examples(path)]


def decoded(path):
  lines = list(input_lines.read_file(str(path)))
  bad = [line for line in lines if isinstance(line, text_lines.BadLine)]
  if bad:
    raise ValueError(f'{path} line {bad[0].number} {bad[0].reason}')
  return [line.text for line in lines]


@pytest.mark.parametrize(
  ('mark', 'ending', 'packed', 'blank'),
  itertools.product(
    (b'', b'\xef\xbb\xbf'), (b'\n', b'\r\n'), (False, True), (b'', b' \n\n')
  ),
)
def test_however_a_file_is_saved_its_rows_are_the_same(
  tmp_path, mark, ending, packed, blank
):
  content = mark + blank + ending.join([GOOD, GOOD]) + ending + blank
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(gzip.compress(content) if packed else content)
  assert trained_on(path) == decoded(path) == ['a ä', 'a ä']


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('read', [trained_on, decoded])
def test_a_bad_line_is_named_by_either(tmp_path, name, read):
  path = tmp_path / 'rows.jsonl'
  # UTF-16 is told by how a file begins.
  before = b'' if name == 'UTF-16' else GOOD + b'\n'
  path.write_bytes(before + BAD[name] + b'\n')
  number = before.count(b'\n') + 1
  with pytest.raises(ValueError, match=f'rows.jsonl line {number}') as caught:
    read(path)
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [
    ('a.json', b'[{"inputs": "a"}]', 'one a line'),
    ('a.json', b'{\n"inputs": "a"\n}', 'not valid JSON'),
    ('a.ndjson', b'plain text', 'not valid JSON'),
    ('a.JSONL', b'{"source": "a"}', "no text under .* it has 'source'"),
    ('a', b'{"source": "a"}', 'INPUT_FORMAT=text'),
    ('a', b'["a"]', 'INPUT_FORMAT=text'),
    ('a.tsv', b'a\tb', 'INPUT_FORMAT=text'),
    ('a.csv.gz', b'a,b', 'INPUT_FORMAT=text'),
  ],
)
def test_a_format_is_not_guessed_against_what_a_file_says(
  tmp_path, name, content, said
):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=said):
    decoded(path)
  as_text = list(input_lines.read_file(str(path), 'text'))
  assert as_text[0].text == content.splitlines()[0].decode()


def test_braces_and_brackets_make_no_json():
  for text in (b'{a}', b'[1] Smith et al.', b'7', b'"quoted"'):
    (line,) = input_lines.read_lines(io.BytesIO(text))
    assert line.text == text.decode()

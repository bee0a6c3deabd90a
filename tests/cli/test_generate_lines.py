"""Files of lines through `generate`: resumed, refused, and every bad line."""

import dataclasses
import gzip
import io
import json
import os
import pathlib
import sys

import jax
import pytest
from cases import text_cases

from calm_jax import decoding, exits, model
from calm_jax.cli import generate
from calm_jax.pipeline.files import LineOptions, TextFiles, input_lines
from calm_jax.pipeline.files.input_lines import BadLine, InputLine
from calm_jax.pipeline.files.row_files import RowFile

TEXTS = ['eins', 'zwei', 'a bit longer: 17 to 31', 'Ä', '5', 'sechs', 'sieben']


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
  return text_cases.save_run(tmp_path_factory.mktemp('bytes'))


def run(model_dir, source, output=None, **options):
  """Decodes a file; `options` are of the job, its files or its lines."""

  def take(kind):
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: options.pop(name) for name in names & set(options)}

  texts = {
    'input_file': str(source),
    'output_file': None if output is None else str(output),
    **take(TextFiles),
  }
  lines = {'batch_size': 2, **take(LineOptions)}
  return generate.run(
    model_dir=model_dir,
    policy=text_cases.POLICY,
    files=TextFiles(**texts),
    options=LineOptions(**lines),
    **{'threshold': 0.004, **options},
  )


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'texts.jsonl'
  rows = [{'id': f'#{text}', 'inputs': text} for text in TEXTS]
  path.write_text(
    ''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8'
  )
  return path


def read_rows(path):
  text = pathlib.Path(path).read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def test_rows_hold_what_went_in_and_what_came_out(model_dir, source, tmp_path):
  output = tmp_path / 'new' / 'rows.jsonl'
  run(model_dir, source, output)
  rows = read_rows(output)
  assert [row['line'] for row in rows] == list(range(1, 8))
  assert [row['inputs'] for row in rows] == TEXTS
  assert [row['id'] for row in rows] == [f'#{text}' for text in TEXTS]
  for row in rows:
    assert not row['certified']
    assert len(row['tokens']) == len(row['pieces']) == len(row['spans'])
    assert len(row['exit_layers']) == len(row['confidences'])
  assert sorted(path.name for path in output.parent.iterdir()) == [
    'rows.jsonl',
    'rows.jsonl.about',
  ]


@pytest.mark.slow
@pytest.mark.parametrize('killed_at', range(4))
def test_a_killed_job_goes_on_where_it_was(
  model_dir, source, tmp_path, monkeypatch, killed_at, capsys
):
  whole, output = tmp_path / 'whole.jsonl', tmp_path / 'rows.jsonl'
  options = dict(sampler=decoding.Temperature(2.0), num_samples=2)
  real, calls = decoding.generate, []

  def counted(*arguments, **keywords):
    if len(calls) == killed_at and output.with_suffix('.now').exists():
      raise KeyboardInterrupt
    calls.append(1)
    return real(*arguments, **keywords)

  monkeypatch.setattr(decoding, 'generate', counted)
  run(model_dir, source, whole, **options)
  in_one_go = len(calls)
  assert in_one_go == 4
  calls.clear()
  output.with_suffix('.now').touch()
  with pytest.raises(KeyboardInterrupt):
    run(model_dir, source, output, **options)
  output.with_suffix('.now').unlink()
  if killed_at == 2:
    # The line being written was cut, but its row lay in the other file too.
    waiting = pathlib.Path(f'{output}.waiting')
    lines = output.read_bytes()
    waiting.write_bytes(waiting.read_bytes() + lines + b'{"li')
    output.write_bytes(lines[:-5])
  run(model_dir, source, output, **options)
  assert len(calls) == in_one_go
  assert output.read_bytes() == whole.read_bytes()
  # A finished job has nothing to do.
  run(model_dir, source, output, **options)
  assert len(calls) == in_one_go
  assert output.read_bytes() == whole.read_bytes()
  assert 'nothing was left to decode' in capsys.readouterr().err
  samples = read_rows(output)[0]['samples']
  assert samples[0]['tokens'] != samples[1]['tokens']


@pytest.mark.slow
def test_rows_of_something_else_are_refused(model_dir, source, tmp_path):
  output = tmp_path / 'rows.jsonl'
  run(model_dir, source, output)
  before = output.read_bytes()
  lines = source.read_text(encoding='utf-8').splitlines(keepends=True)
  other = tmp_path / 'other.jsonl'
  other.write_text(''.join([*lines[1:], lines[0]]), encoding='utf-8')
  with pytest.raises(ValueError, match='another text for line 1.*OUTPUT_FILE'):
    run(model_dir, other, output)
  other.write_text(''.join(lines[:3]), encoding='utf-8')
  with pytest.raises(ValueError, match='row of line 7.*ends with line 3'):
    run(model_dir, other, output)
  for change in (dict(seed=4), dict(batch_size=3), dict(threshold=0.5)):
    (name,) = change
    with pytest.raises(ValueError, match=f'made otherwise: {name} .*delete'):
      run(model_dir, source, output, **change)
  another = text_cases.save_run(tmp_path / 'another', key=1)
  with pytest.raises(ValueError, match='made otherwise: parameters '):
    run(another, source, output)
  assert output.read_bytes() == before
  stranger = tmp_path / 'stranger.jsonl'
  stranger.write_text('{"precious": 1}\n')
  with pytest.raises(ValueError, match='without .*stranger.jsonl.about'):
    run(model_dir, source, stranger)
  assert stranger.read_text() == '{"precious": 1}\n'
  output.write_bytes(before.replace(b'"line": 2', b'"lime": 2'))
  with pytest.raises(ValueError, match='rows.jsonl line 2 is no row of this'):
    run(model_dir, source, output)


@pytest.mark.parametrize('about', [b'[]', b'{"made_with": 3}', b'\xff', b''])
def test_a_file_that_does_not_say_how_it_was_made(
  model_dir, source, tmp_path, about
):
  output = tmp_path / 'rows.jsonl'
  output.with_name('rows.jsonl.about').write_bytes(about)
  with pytest.raises(ValueError, match='rows.jsonl.about (does|is) not '):
    run(model_dir, source, output)


def test_a_pipe_is_read_once(model_dir, source, tmp_path):
  expected, output = tmp_path / 'expected.jsonl', tmp_path / 'rows.jsonl'
  run(model_dir, source, expected)
  reader, writer = os.pipe()
  os.write(writer, source.read_bytes())
  os.close(writer)
  run(model_dir, f'/dev/fd/{reader}', output)
  os.close(reader)
  assert output.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_lines_may_be_added_to_an_input(model_dir, source, tmp_path):
  output = tmp_path / 'rows.jsonl'
  run(model_dir, source, output)
  with source.open('a') as file:
    file.write('{"text": "acht", "score": 3}\n')
  run(model_dir, source, output)
  last = read_rows(output)[-1]
  assert (last['line'], last['inputs']) == (8, 'acht')
  # A name that is taken is kept beside what took it.
  assert last['input_score'] == 3 and last['score'] != 3


BAD_TEXT = (
  b'good\n\n  \xff\xfe\nlonger than the thirty-one bytes of it\nend\r\n'
)


def test_bad_lines_end_the_job_before_anything_is_decoded(
  model_dir, tmp_path, monkeypatch
):
  def refuse(*arguments, **keywords):
    raise AssertionError('decoded')

  monkeypatch.setattr(decoding, 'generate', refuse)
  source = tmp_path / 'texts.txt'
  source.write_bytes(BAD_TEXT)
  with pytest.raises(ValueError, match='line 2') as caught:
    run(model_dir, source, tmp_path / 'rows.jsonl')
  message = str(caught.value)
  for part in (
    'line 2 is empty',
    'line 3 is not UTF-8: byte 0xff at place 2',
    'line 4 has 39 tokens',
    'BAD_LINES=skip',
  ):
    assert part in message
  assert not (tmp_path / 'rows.jsonl').exists()


def test_bad_lines_are_skipped_by_choice(model_dir, tmp_path, capsys):
  source, output = tmp_path / 'texts.txt', tmp_path / 'rows.jsonl'
  source.write_bytes(BAD_TEXT)
  run(model_dir, source, output, bad_lines='skip')
  assert [(row['line'], row['inputs']) for row in read_rows(output)] == [
    (1, 'good'),
    (5, 'end'),
  ]
  told = capsys.readouterr().err
  assert f'{source} line 3 is not UTF-8' in told
  assert '3 lines skipped: 2, 3, 4' in told
  assert 'tokens/s' in told and f'of {text_cases.L}' in told
  output = tmp_path / 'cut.jsonl'
  run(model_dir, source, output, bad_lines='skip', too_long='truncate')
  rows = read_rows(output)
  assert [row['line'] for row in rows] == [1, 4, 5]
  assert rows[1]['warnings'] == [
    'cut to 32 of 39 tokens (end of sequence included)'
  ]
  assert 'line 4: cut to 32 of 39' in capsys.readouterr().err
  with pytest.raises(ValueError, match="bad_lines is 'ignore'"):
    run(model_dir, source, output, bad_lines='ignore')


@pytest.mark.parametrize(
  'content, message',
  [(b'', 'it has no lines'), (b'\n \n\xff\n', 'all 3 lines are bad')],
)
def test_nothing_to_decode(model_dir, tmp_path, content, message):
  source = tmp_path / 'texts.txt'
  source.write_bytes(content)
  with pytest.raises(ValueError, match=f'nothing to decode.*{message}'):
    run(model_dir, source, tmp_path / 'rows.jsonl', bad_lines='skip')
  assert not (tmp_path / 'rows.jsonl').exists()


def test_input_and_output_are_checked_before_the_model_is_loaded(tmp_path):
  with pytest.raises(FileNotFoundError, match='no input file .*none.txt'):
    run(tmp_path, tmp_path / 'none.txt')
  for texts in (dict(), dict(inputs='a', input_file='b')):
    with pytest.raises(ValueError, match='either INPUTS.* or INPUT_FILE'):
      TextFiles(**texts)
  with pytest.raises(ValueError, match="input_format is 'csv'"):
    run(tmp_path, tmp_path, input_format='csv')


@pytest.mark.parametrize(
  ('output', 'message'),
  [
    ('texts.txt', 'is the INPUT_FILE itself'),
    ('link.txt', 'is the INPUT_FILE itself'),
    ('.', 'is a folder; name a file in it'),
    ('/dev/null', 'leave OUTPUT_FILE out'),
    ('rows.jsonl.gz', 'name it .*/rows.jsonl and pack it'),
  ],
)
def test_files_that_are_no_jobs_are_never_to_go(tmp_path, output, message):
  texts = tmp_path / 'texts.txt'
  texts.write_text('one')
  (tmp_path / 'link.txt').symlink_to(texts)
  with pytest.raises(ValueError, match=message) as error:
    run(tmp_path, texts, tmp_path / output)
  assert 'delete ' not in str(error.value)
  (tmp_path / 'other.txt').write_text('a letter')
  with pytest.raises(ValueError, match='nobody knows what made') as error:
    RowFile(str(tmp_path / 'other.txt'), {})
  assert 'delete ' not in str(error.value)
  assert texts.read_text() == 'one'


@pytest.mark.slow
def test_outputs_begin_and_never_say_what_was_chosen(
  model_dir, source, tmp_path, capsys
):
  plain, output = tmp_path / 'plain.jsonl', tmp_path / 'rows.jsonl'
  run(model_dir, source, plain)
  said = {piece for row in read_rows(plain) for piece in row['pieces']}
  never = sorted(said - {'</s>'} - {*'né'} - set('<0xC3> <0xA9>'.split()))
  capsys.readouterr()
  run(model_dir, source, output, forced_prefix='né', suppressed_tokens=never)
  rows, told = read_rows(output), capsys.readouterr().err
  for row in rows:
    assert row['text'].startswith('né')
    assert row['prefix_length'] == 3
    assert row['exit_layers'][:3] == [text_cases.L] * 3
    assert not set(never) & set(row['pieces'])
  # The mean is over what the model chose.
  chosen = [layer for row in rows for layer in row['exit_layers'][3:]]
  assert f'mean exit layer {sum(chosen) / len(chosen):.2f} of' in told
  for changed in (dict(forced_prefix='n'), dict(suppressed_tokens='x')):
    (name,) = changed
    options = dict(forced_prefix='né', suppressed_tokens=never) | changed
    with pytest.raises(ValueError, match=f'made otherwise: {name} '):
      run(model_dir, source, output, **options)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(forced_prefix='nine chars'), "prefix 'nine chars' has 10 tokens"),
    (dict(forced_prefix='no', suppressed_tokens='n'), 'token 113 .*suppressed'),
    (dict(suppressed_tokens=['a', 'the']), "no token is 'the'.*'t', 'h', 'e'"),
    (dict(suppressed_tokens=264), 'no token 264.*0 to 263'),
    (dict(suppressed_tokens=['</s>']), 'suppressed_tokens hold eos_id 1'),
    (dict(suppressed_tokens=[True]), 'True is no token'),
  ],
  ids=str,
)
def test_tokens_that_make_no_sense_are_refused(
  model_dir, source, tmp_path, options, message
):
  with pytest.raises(ValueError, match=message):
    run(model_dir, source, tmp_path / 'rows.jsonl', **options)
  assert list(tmp_path.iterdir()) == [source]


class Terminal(io.TextIOWrapper):
  """Standard input that somebody types into."""

  def isatty(self):
    return True


def test_standard_input_goes_to_standard_output(
  model_dir, source, tmp_path, monkeypatch, capsys
):
  output = tmp_path / 'rows.jsonl'
  run(model_dir, source, output)
  capsys.readouterr()
  typed = io.TextIOWrapper(io.BytesIO(source.read_bytes()))
  monkeypatch.setattr(sys, 'stdin', typed)
  run(model_dir, '-')
  assert capsys.readouterr().out == output.read_text(encoding='utf-8')


def test_a_terminal_is_answered_token_by_token(model_dir, monkeypatch, capsys):
  typed = Terminal(io.BytesIO('zwei\n\nÄ\n'.encode()))
  monkeypatch.setattr(sys, 'stdin', typed)
  run(model_dir, '-')
  printed = capsys.readouterr()
  # Not a terminal on this side, so layers are numbers.
  legend, *answers = printed.out.splitlines()
  assert legend == 'token/exit layer, 1 to 2'
  assert len(answers) == 2
  assert all(len(line.split()) == 8 for line in answers)
  assert 'line 2 is empty' in printed.err


def read(content, input_format='auto'):
  return list(input_lines.read_lines(io.BytesIO(content), input_format))


def test_what_lines_may_look_like():
  assert read(b'\xef\xbb\xbfone\r\ntwo') == [
    InputLine(1, 'one'),
    InputLine(2, 'two'),
  ]
  # U+2028 ends no line, and braces make no JSON.
  assert read('{a}\u2028b\n'.encode()) == [InputLine(1, '{a}\u2028b')]
  assert read(b'{"inputs": "a", "text": "b"}\n') == [
    InputLine(1, 'a', {'text': 'b'})
  ]
  assert read(b'{"inputs": "a"}\n', 'text') == [InputLine(1, '{"inputs": "a"}')]


@pytest.mark.parametrize(
  'line, reason',
  [
    (b'{"inputs": "a"', 'not valid JSON'),
    (b'["a"]', 'not an object'),
    (b'{"id": 3}', 'no text under'),
    (b'{"inputs": 3}', 'no text under'),
    (b'{"text": " "}', 'empty'),
    (b'{"text": "\\ud83d"}', 'surrogate'),
    (b'{"text": "a", "id": "\\ud83d"}', 'surrogate'),
    (b'[' * 100_000, 'not valid JSON'),
    (b'{"text": "\xc3"}', 'not UTF-8: byte 0xc3 at place 10'),
  ],
)
def test_bad_json_lines_say_why(line, reason):
  good, bad = read(b'{"inputs": "a"}\r\n' + line + b'\n', 'jsonl')
  assert isinstance(good, InputLine)
  assert isinstance(bad, BadLine) and bad.number == 2
  assert reason in bad.reason


def test_files_may_be_packed_and_damaged_ones_are_named(tmp_path):
  path = tmp_path / 'texts.jsonl.gz'
  packed = gzip.compress(b'{"inputs": "a"}\n' * 9)
  path.write_bytes(packed)
  assert len(list(input_lines.read_file(str(path)))) == 9
  path.write_bytes(packed[:-9])
  with pytest.raises(ValueError, match='texts.jsonl.gz is a damaged'):
    list(input_lines.read_file(str(path)))
  with pytest.raises(ValueError, match='is a folder'):
    list(input_lines.read_file(str(tmp_path)))


def test_a_very_long_line_is_cut_in_time(model_dir, tmp_path, capsys):
  source, output = tmp_path / 'texts.txt', tmp_path / 'rows.jsonl'
  source.write_bytes(b'x' * 1_000_000)
  with pytest.raises(ValueError, match='line 1 has 1000001 tokens'):
    run(model_dir, source, output)
  run(model_dir, source, output, too_long='truncate', batch_size=1)
  (row,) = read_rows(output)
  assert len(row['inputs']) == 1_000_000


def test_without_a_certificate_a_budget_stays(tmp_path, capsys):
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
  budget = exits.LayerBudget(rule, per_request=20)
  for wrapped, expected, said in (
    (rule, exits.NeverExit(), 'full model\n'),
    (
      budget,
      exits.LayerBudget(exits.NeverExit(), per_request=20),
      'full model within its layer budget\n',
    ),
  ):
    policy = decoding.ComputePolicy(exit_rule=wrapped)
    found, certificate = generate._policy(policy, str(tmp_path), None, None)
    assert found == decoding.ComputePolicy(exit_rule=expected)
    assert certificate is None
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.slow
def test_outputs_that_end_at_numbers_that_are_none_say_so(tmp_path, capsys):
  """Parameters that are finite, and logits that overflow."""
  params = model.init_params(text_cases.CONFIG, jax.random.key(0))
  kernel = params['decoder']['logits_dense']['kernel']
  largest = kernel / abs(kernel).max() * 3e38
  params['decoder']['logits_dense']['kernel'] = largest
  folder = text_cases.save_run(tmp_path / 'run', params=params)
  source, output = tmp_path / 'texts.txt', tmp_path / 'rows.jsonl'
  source.write_text('one\ntwo\n', encoding='utf-8')
  run(folder, source, output, threshold=1.0)
  for row in read_rows(output):
    assert 'position 0 are not finite from layer 1 of 2' in row['error']
    assert row['tokens'] == [] and not row['certified']
  said = capsys.readouterr().err
  assert '2 lines have outputs that end where numbers were not finite' in said

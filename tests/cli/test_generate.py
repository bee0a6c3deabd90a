"""The generate job, with and without the certificate of a run."""

import pathlib

import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import bindings_of, call

from calm_jax import pipeline, records
from calm_jax.cli import gin_runner


def test_generation_uses_the_certificate(calibrated, capsys):
  policy = 'policies/softmax_margin.gin'
  files = ['runs/generate.gin', policy]
  directory = calibrated['MODEL_DIR']
  (output,) = call(
    'generate', files, MODEL_DIR=directory, INPUTS='one two three'
  )
  assert output.text
  assert len(output.pieces) == len(output.exit_layers) == len(output.tokens)
  assert 'one two three' in capsys.readouterr().out
  (full,) = call(
    'generate',
    files,
    MODEL_DIR=directory,
    INPUTS='one two three',
    **{'generate.run.threshold': 1.0},
  )
  assert set(full.exit_layers) == {3}


def test_a_file_of_texts_is_generated(calibrated, tmp_path, capsys):
  lines = ['{"text": "one two", "id": 7}', '{"text": "\u65e5\u672c"}', '{}']
  source, output = tmp_path / 'texts.jsonl', tmp_path / 'rows.jsonl'
  source.write_text('\n'.join(lines), encoding='utf-8')
  outputs = call(
    'generate',
    ['runs/generate.gin', 'policies/softmax_margin.gin'],
    MODEL_DIR=calibrated['MODEL_DIR'],
    INPUT_FILE=str(source),
    OUTPUT_FILE=str(output),
    BAD_LINES='skip',
  )
  assert outputs == []
  first, unknown = records.read_jsonl(output)
  assert (first['line'], first['inputs'], first['id']) == (1, 'one two', 7)
  assert first['certified'] and 'warnings' not in first
  for piece, (start, end) in zip(first['pieces'], first['spans'], strict=True):
    said = first['text'][start:end].strip()
    assert said == ('' if piece == '</s>' else piece.strip('\u2581'))
  assert unknown['warnings'] == ['nothing of it is in the vocabulary']
  printed = capsys.readouterr()
  assert printed.out == ''
  assert 'line 3 has no text under' in printed.err
  assert 'line 2: nothing of it is in the vocabulary' in printed.err


@pytest.mark.parametrize(
  'text, message',
  [('  ', 'input 0 is empty'), ('one ' * 40, 'tokens .*trained for 12')],
)
def test_bad_inputs_are_refused(trained, text, message):
  generator = pipeline.TextGenerator.from_run(trained['MODEL_DIR'])
  with pytest.raises(ValueError, match=message):
    generator.generate([text])


def test_a_certificate_holds_for_what_it_was_made_for_only(calibrated):
  path = pathlib.Path(calibrated['MODEL_DIR']) / 'calibration/certificate.json'
  gin_runner.parse(['policies/state_similarity.gin'])
  other = gin.config.query_parameter('%POLICY').scoped_configurable_fn()
  with pytest.raises(ValueError, match=r'policy\S*: certified for'):
    pipeline.TextGenerator.from_run(
      calibrated['MODEL_DIR'], policy=other, certificate=path
    )


def test_what_a_certificate_does_not_cover_is_marked(calibrated, capsys):
  texts = {}
  for policy in ('softmax_margin', 'state_similarity'):
    (output,) = call(
      'generate',
      ['runs/generate.gin', f'policies/{policy}.gin'],
      MODEL_DIR=calibrated['MODEL_DIR'],
      INPUTS='one two three',
      ALLOW_UNCERTIFIED=True,
    )
    texts[output.certified] = capsys.readouterr().out
  assert 'UNCERTIFIED' in texts[False]
  assert 'UNCERTIFIED' not in texts[True]


@pytest.mark.slow
def test_drafts_in_8_bits_change_nothing(calibrated):
  given = dict(MODEL_DIR=calibrated['MODEL_DIR'], INPUTS='one two three')

  def decode(policy, **bindings):
    files = ['runs/generate.gin', f'policies/{policy}.gin']
    (output,) = call('generate', files, **given, **bindings)
    return output

  full = decode('softmax_margin', THRESHOLD=1.0)
  drafted = decode('lossless_int8', DRAFT_LAYERS=3)
  assert drafted.tokens == full.tokens


@pytest.mark.slow
def test_weights_in_8_bits_are_told_without_a_certificate(trained, capsys):
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/softmax_margin.gin'],
    MODEL_DIR=trained['MODEL_DIR'],
    INPUTS='one two three',
    WEIGHTS='int8',
    THRESHOLD=0.5,
  )
  assert output.text and not output.certified
  assert 'certifies it' in ''.join(capsys.readouterr())


def test_thresholds_outside_the_range_are_refused(trained):
  with pytest.raises(ValueError, match=r'threshold 1.5, not in \[0, 1\]'):
    call(
      'generate',
      ['runs/generate.gin', 'policies/softmax_margin.gin'],
      MODEL_DIR=trained['MODEL_DIR'],
      INPUTS='one',
      **{'generate.run.threshold': 1.5},
    )


@pytest.mark.slow
def test_macros_of_decoding_do_what_they_say(calibrated, tmp_path):
  directory = calibrated['MODEL_DIR']
  copy = tmp_path / 'mine.json'
  own = pathlib.Path(directory) / 'calibration/certificate.json'
  copy.write_bytes(b'\xef\xbb\xbf' + own.read_bytes())
  given = dict(MODEL_DIR=directory, INPUTS='one two three')
  files = ['runs/generate.gin', 'policies/softmax_margin.gin']

  def decode(**bindings):
    (output,) = call('generate', files, **given, **bindings)
    return output

  certified = decode()
  assert certified.certified and len(certified.tokens) > 2
  assert decode(CERTIFICATE=str(copy)) == certified
  assert set(decode(THRESHOLD=1.0).exit_layers) == {3}
  short = decode(MAX_LENGTH=2, THRESHOLD=1.0)
  assert len(short.tokens) == 2 and not short.certified
  with pytest.raises(ValueError, match='is a folder'):
    decode(CERTIFICATE=str(tmp_path))
  with pytest.raises(ValueError, match='THRESHOLD, 0.5 by hand, or CERTIF'):
    decode(CERTIFICATE=str(copy), THRESHOLD=0.5)


@pytest.mark.slow
def test_checked_drafts_need_no_certificate(calibrated, capsys):
  given = dict(MODEL_DIR=calibrated['MODEL_DIR'], INPUTS='one two three')

  def decode(policy, **bindings):
    files = ['runs/generate.gin', f'policies/{policy}.gin']
    (output,) = call('generate', files, **given, **bindings)
    return output

  full = decode('softmax_margin', THRESHOLD=1.0)
  capsys.readouterr()
  drafted = decode('lossless', THRESHOLD=0.0)
  assert "outputs are the full model's" in ''.join(capsys.readouterr())
  assert drafted.tokens == full.tokens
  with pytest.raises(ValueError, match='is for unchecked early tokens'):
    decode('lossless', CERTIFICATE='mine.json')
  for job in ('calibrate', 'evaluate'):
    with pytest.raises(ValueError, match='checks every draft'):
      call(
        job,
        [f'runs/{job}.gin', 'policies/lossless.gin', calibrated['task']],
        **bindings_of(calibrated),
      )

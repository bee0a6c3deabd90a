"""The convert command: its flags, what it prints and what a run needs."""

import dataclasses
import json

import numpy as np
import pytest
from cases import golden_calm, text_cases
from cases.checkpoint_cases import SMALL, V1_1, arrays, assert_same_bits, write
from flax import serialization
from tools.mains import run_main

from calm_jax import checkpoints, pipeline, runs
from calm_jax.cli import convert
from calm_jax.tokenizer import ByteTokenizer, train_sentencepiece


def target(form, **options):
  return checkpoints.Target(format=form, **options)


def test_dry_run_prints_the_mapping_and_writes_nothing(tmp_path, capsys):
  source = write(V1_1, tmp_path / 'hf', 'huggingface')
  convert.run(
    source,
    tmp_path / 'out',
    target('t5x', stacked=True, dtype='bfloat16'),
    dry_run=True,
  )
  printed = capsys.readouterr().out
  lines = [line.split('  ') for line in printed.splitlines()]
  rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
  assert [
    'decoder.block.2.layer.1.EncDecAttention.o.weight',
    'decoder/layers_2/encoder_decoder_attention/out/kernel',
    'decoder/decoder/encoder_decoder_attention/out/kernel[:, 2]',
    '12 x 8',
    'bfloat16',
  ] in rows
  # All tensors once, and what they take on disk.
  assert sum(row[-1] == 'bfloat16' for row in rows) == len(arrays(V1_1))
  size = sum(array.nbytes for array in arrays(V1_1).values())
  assert f'{len(arrays(V1_1))} tensors of float32, {size:,} bytes' in printed
  assert printed.splitlines()[-1].endswith('would be written; nothing was')
  assert not (tmp_path / 'out').exists()


def test_there_and_back(tmp_path, capsys):
  source = write(SMALL, tmp_path / 'run', 'calm_jax')
  convert.run(source, tmp_path / 'hf', target('huggingface'))
  fingerprint = checkpoints.read_metadata(source)['parameter_fingerprint']
  printed = capsys.readouterr().out
  assert f'read back and equal; fingerprint {fingerprint}' in printed
  convert.run(tmp_path / 'hf', tmp_path / 't5x', target('t5x'), step=1_000_000)
  found = checkpoints.open_checkpoint(tmp_path / 't5x')
  assert found.step == 1_000_000
  assert_same_bits(found.tensors, arrays(SMALL))


@pytest.mark.slow
def test_the_release_becomes_a_run_that_decodes(tmp_path, capsys):
  """With a vocabulary beside it, and its classifier in its folder."""
  params, _ = golden_calm.load()
  state = {'step': np.int32(5), 'param_states': {}}
  (tmp_path / 'released').write_bytes(
    serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': params, 'state': state}}
    )
  )
  vocabulary = tmp_path / 'spiece.model'
  texts = [f'word {n} apple {n * 7}' for n in range(200)]
  size = train_sentencepiece(texts, vocabulary, vocab_size=30)
  arguments = (tmp_path / 'released', tmp_path / 'run', target('calm_jax'))
  options = dict(
    vocabulary=vocabulary,
    feature_lengths={'inputs': 19, 'targets': 5},
    prefix='say: ',
  )
  with pytest.raises(ValueError, match='has 330 ids .* only 160 rows'):
    convert.run(*arguments, texts=runs.TextFeatures(**options, extra_ids=300))
  convert.run(*arguments, texts=runs.TextFeatures(**options, extra_ids=4))
  printed = capsys.readouterr().out
  assert 'two logits become one' in printed
  loaded = runs.load_run(tmp_path / 'run')
  assert loaded.config == golden_calm.CONFIG and loaded.step == 5
  assert loaded.feature_lengths == {'inputs': 19, 'targets': 5}
  assert loaded.prefix == 'say: ' and loaded.tokenizer.vocab_size == size + 4
  classifier = runs.load_classifier(tmp_path / 'run')
  kernel = params['decoder']['meta_cls']['kernel']
  np.testing.assert_array_equal(classifier.kernel, kernel[:, 1] - kernel[:, 0])
  [output] = pipeline.TextGenerator.from_run(tmp_path / 'run').generate(
    ['apple']
  )
  assert 1 <= len(output.tokens) <= 5
  assert set(output.exit_layers) == {golden_calm.CONFIG.num_decoder_layers}
  # The classifier is told apart from the run it lies in.
  assert checkpoints.open_checkpoint(tmp_path / 'run').step == 5


@pytest.mark.slow
def test_bytes_need_no_vocabulary_file(tmp_path):
  source = text_cases.save_run(tmp_path / 'run')
  convert.run(source, tmp_path / 'hf', target('huggingface'))
  convert.run(
    tmp_path / 'hf',
    tmp_path / 'back',
    target('calm_jax'),
    texts=runs.TextFeatures('bytes', extra_ids=5),
  )
  loaded = runs.load_run(tmp_path / 'back')
  assert loaded.tokenizer.fingerprint == ByteTokenizer(5).fingerprint
  assert not (tmp_path / 'back' / 'vocabulary.model').exists()
  with pytest.raises(ValueError, match='bytes has 384 ids .* only 264 rows'):
    convert.run(
      tmp_path / 'hf',
      tmp_path / 'again',
      target('calm_jax'),
      texts=runs.TextFeatures('bytes', extra_ids=125),
    )


def test_what_lies_beside_weights_for_transformers(tmp_path, capsys):
  """From a run directory its vocabulary, from a folder its neighbours."""
  run = text_cases.save_run(tmp_path / 'run')
  convert.run(run, tmp_path / 'bytes', target('huggingface'))
  assert 'beside it: generation_config.json, tokenizer_config.json' in (
    capsys.readouterr().out
  )
  config = json.loads(
    (tmp_path / 'bytes' / 'tokenizer_config.json').read_text()
  )
  assert config['tokenizer_class'] == 'ByT5Tokenizer'
  assert config['extra_ids'] == 5
  source = write(SMALL, tmp_path / 'hf', 'huggingface')
  convert.run(source, tmp_path / 'bare', target('huggingface'))
  assert 'no tokenizer lies beside the weights' in capsys.readouterr().out
  vocabulary = tmp_path / 'vocab.model'
  train_sentencepiece(['aba bab ab'] * 50, vocabulary, vocab_size=7)
  convert.run(
    source,
    tmp_path / 'with',
    target('huggingface'),
    texts=runs.TextFeatures(vocabulary, extra_ids=2),
  )
  (tmp_path / 'with' / 'generation_config.json').write_text('{"num_beams": 4}')
  convert.run(tmp_path / 'with', tmp_path / 'again', target('huggingface'))
  for name in ('spiece.model', 'tokenizer_config.json'):
    again = (tmp_path / 'again' / name).read_bytes()
    assert again == (tmp_path / 'with' / name).read_bytes()
  rules = json.loads((tmp_path / 'again/generation_config.json').read_text())
  assert rules == {'num_beams': 4}
  capsys.readouterr()
  convert.run(tmp_path / 'with', tmp_path / 'ours', target('calm_jax'))
  assert f'--vocabulary={tmp_path}/with/spiece.model' in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_folder_says_of_generating_comes_along(tmp_path, capsys):
  """The run says what the folder says, and so does the folder made of it."""
  source = text_cases.save_run(tmp_path / 'run')
  convert.run(source, tmp_path / 'hf', target('huggingface'))
  texts = runs.TextFeatures(
    'bytes', extra_ids=5, feature_lengths={'inputs': 32, 'targets': 8}
  )
  inputs = ['one', 'another text']

  def said(path, vocabulary=None):
    generator = pipeline.load(path, vocabulary=vocabulary)
    return [output.tokens for output in generator.generate(inputs)], generator

  plain, _ = said(tmp_path / 'hf', texts)
  never = sorted({token for tokens in plain for token in tokens} - {1})[:3]
  (tmp_path / 'hf' / 'generation_config.json').write_text(
    json.dumps({'suppress_tokens': never, 'forced_bos_token_id': 77})
  )
  expected, folder = said(tmp_path / 'hf', texts)
  assert not set(never).intersection(*expected) and expected != plain
  capsys.readouterr()
  convert.run(
    tmp_path / 'hf', tmp_path / 'ours', target('calm_jax'), texts=texts
  )
  assert 'does not keep' not in capsys.readouterr().out
  found, ours = said(tmp_path / 'ours')
  assert found == expected
  assert ours.suppressed_tokens == folder.suppressed_tokens == tuple(never)
  assert tuple(ours.forced_prefix) == tuple(folder.forced_prefix) == (77,)
  assert said(tmp_path / 'ours', texts)[0] == expected
  notes = '\n'.join(runs.load_run(tmp_path / 'ours').notes)
  assert 'are never said' in notes and 'begins with the token 77' in notes
  # From form to form.
  convert.run(tmp_path / 'ours', tmp_path / 'copy', target('calm_jax'))
  convert.run(tmp_path / 'copy', tmp_path / 'back', target('huggingface'))
  assert said(tmp_path / 'back', texts)[0] == expected
  convert.run(tmp_path / 'copy', tmp_path / 't5x', target('t5x'))
  assert 'does not keep how outputs are gen' in capsys.readouterr().out


def test_what_t5x_does_not_say_can_be_said(tmp_path, capsys):
  source = write(SMALL, tmp_path / 't5x', 't5x')
  (tmp_path / 't5x' / 'checkpoint_7' / 'calm_jax_config.json').unlink()
  said = {'mlp_activations': ('silu', 'linear'), 'relative_max_distance': 64}
  convert.run(source, tmp_path / 'a', target('huggingface'))
  assert 'were assumed' in capsys.readouterr().out
  convert.run(source, tmp_path / 'b', target('huggingface'), said=said)
  assert 'were assumed' not in capsys.readouterr().out
  config = checkpoints.open_checkpoint(tmp_path / 'b').config
  assert config == dataclasses.replace(SMALL, **said)
  with pytest.raises(ValueError, match='holds another model: .*distance'):
    convert.run(tmp_path / 'a', tmp_path / 'c', target('t5x'), said=said)


def test_a_vocabulary_is_for_our_own_form(tmp_path):
  with pytest.raises(ValueError, match='--vocabulary is for --to=calm_jax'):
    convert.run(
      tmp_path,
      tmp_path,
      target('t5x'),
      texts=runs.TextFeatures('spiece.model'),
    )


def test_the_command(tmp_path):
  """Flags reach what they name, and errors end in one line."""
  source = write(SMALL, tmp_path / 'hf', 'huggingface')
  arguments = (f'--source={source}', f'--target={tmp_path / "t5x"}')
  options = ('--to=t5x', '--stacked', '--dtype=float16', '--step=3')
  for expected in (0, 1):
    result = run_main('convert', *arguments, *options)
    assert result.returncode == expected, result.stderr
  assert result.stderr.strip().startswith('convert: ')
  assert 'checkpoint_3 is there already' in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  found = checkpoints.open_checkpoint(tmp_path / 't5x')
  assert found.step == 3 and 'were taken apart' in found.notes[0]
  assert {tensor.dtype.name for tensor in found.tensors.values()} == {'float16'}

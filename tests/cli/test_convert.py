"""The convert command: its flags, what it prints and what a run needs."""

import golden_calm
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from checkpoint_cases import SMALL, V1_1, arrays, assert_same_bits, write
from flax import serialization

from calm_jax import checkpoints, pipeline
from calm_jax.cli import convert
from calm_jax.tokenizer import train_sentencepiece


@pytest.fixture
def run(capsys):
  """Returns a function that runs the command here and returns its output."""

  def call(*arguments):
    with flagsaver.flagsaver():
      flags.FLAGS(['convert', *map(str, arguments)])
      convert.main(['convert'])
    return capsys.readouterr().out

  return call


def test_dry_run_prints_the_mapping_and_writes_nothing(tmp_path, run):
  source = write(V1_1, tmp_path / 'hf', 'huggingface')
  target = tmp_path / 'out'
  printed = run(
    f'--source={source}',
    f'--target={target}',
    '--to=t5x',
    '--stacked',
    '--dtype=bfloat16',
    '--dry_run',
  )
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
  assert not target.exists()


def test_there_and_back(tmp_path, run):
  source = write(SMALL, tmp_path / 'run', 'calm_jax')
  printed = run(
    f'--source={source}', f'--target={tmp_path / "hf"}', '--to=huggingface'
  )
  fingerprint = checkpoints.read_metadata(source)['parameter_fingerprint']
  assert f'read back and equal; fingerprint {fingerprint}' in printed
  run(
    f'--source={tmp_path / "hf"}',
    f'--target={tmp_path / "t5x"}',
    '--to=t5x',
    '--step=1000000',
  )
  found = checkpoints.open_checkpoint(tmp_path / 't5x')
  assert found.step == 1_000_000
  assert_same_bits(found.tensors, arrays(SMALL))


def test_the_release_becomes_a_run_that_decodes(tmp_path, run):
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
  flags_ = (
    f'--source={tmp_path / "released"}',
    f'--target={tmp_path / "run"}',
    '--to=calm_jax',
    f'--vocabulary={vocabulary}',
    '--input_length=9',
    '--target_length=5',
    '--prefix=say: ',
  )
  with pytest.raises(SystemExit, match='has 330 pieces .* only 160 rows'):
    run(*flags_, '--extra_ids=300')
  printed = run(*flags_, '--extra_ids=4')
  assert 'two logits become one' in printed
  loaded = pipeline.load_run(tmp_path / 'run')
  assert loaded.config == golden_calm.CONFIG and loaded.step == 5
  assert loaded.feature_lengths == {'inputs': 9, 'targets': 5}
  assert loaded.prefix == 'say: ' and loaded.tokenizer.vocab_size == size + 4
  classifier = pipeline.load_classifier(tmp_path / 'run')
  kernel = params['decoder']['meta_cls']['kernel']
  np.testing.assert_array_equal(classifier.kernel, kernel[:, 1] - kernel[:, 0])
  # The classifier is told apart from the run it lies in.
  assert checkpoints.open_checkpoint(tmp_path / 'run').step == 5


def test_errors_end_in_one_line(tmp_path, run):
  with pytest.raises(SystemExit, match='^convert: no checkpoint at'):
    run(f'--source={tmp_path}', f'--target={tmp_path}', '--to=t5x')
  source = write(SMALL, tmp_path / 'hf', 'huggingface')
  with pytest.raises(SystemExit, match='--vocabulary is for --to=calm_jax'):
    run(
      f'--source={source}',
      f'--target={tmp_path}',
      '--to=t5x',
      f'--vocabulary={__file__}',
      '--extra_ids=0',
    )

"""The throughput benchmark decodes the same tokens in every way."""

import json

import jax
import numpy as np
import pytest

from calm_jax import checkpoints, model, training
from calm_jax.benchmarks import throughput

CONFIG = model.T5Config(
  vocab_size=32,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=2,
)


@pytest.mark.slow
def test_it_reads_a_run_and_a_token_file(tmp_path, capsys):
  params = model.init_params(CONFIG, jax.random.key(3))
  checkpoints.save(tmp_path / 'run', 1, params=params, config=CONFIG)
  rng = np.random.default_rng(0)
  examples = [
    {'inputs': [*rng.integers(2, 32, size), 1], 'targets': [2, 1]}
    for size in rng.integers(2, 30, 9)
  ]
  tokens = str(tmp_path / 'test.npz')
  training.write_npz(tokens, examples)
  output = tmp_path / 'rows.json'
  arguments = [f'--run_dir={tmp_path / "run"}', f'--tokens={tokens}']
  arguments += ['--num_inputs=8', '--max_length=6', '--num_repeats=1']
  throughput.main([*arguments, '--batch_size=4', f'--output={output}'])
  table = capsys.readouterr().out
  rows = json.loads(output.read_text())['rows']
  assert [row['way'] for row in rows] == [*throughput.WAYS] * 2
  assert rows[0]['speed_up'] == 1.0
  for row in rows:
    assert 8 <= row['num_tokens'] <= 48
    assert f'{row["tokens_per_second"]:.0f} |' in table
  # All ways of one policy decode the same.
  assert len({row['num_tokens'] for row in rows[:3]}) == 1
  with pytest.raises(SystemExit, match='do not fill a batch of 16'):
    throughput.main(arguments)
  with pytest.raises(SystemExit, match='There is no file'):
    throughput.main([arguments[0], '--tokens=none.npz'])

"""The drafting benchmark finds acceptances, and says what it measured."""

import json

import jax
import numpy as np
import pytest

from calm_jax import model
from calm_jax.benchmarks import drafting_speed

CONFIG = model.T5Config(
  vocab_size=64,
  embed_dim=32,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=4,
)


def test_weak_layers_are_those_behind_the_drafts():
  params = model.init_params(CONFIG, jax.random.key(0))
  weak = drafting_speed.with_weak_layers(params, 2, 0.5)
  for layer in range(4):
    here, there = (
      tree['decoder'][f'layers_{layer}'] for tree in (params, weak)
    )
    np.testing.assert_array_equal(
      there['mlp']['wo']['kernel'],
      here['mlp']['wo']['kernel'] * (0.5 if layer >= 2 else 1.0),
    )
    np.testing.assert_array_equal(
      there['mlp']['wi_0']['kernel'], here['mlp']['wi_0']['kernel']
    )


@pytest.mark.slow
def test_rows_say_what_was_accepted():
  rows = list(
    drafting_speed.measure(
      'tiny',
      acceptances=[0.5],
      ways=[(3, 0), (3, 16)],
      exit_layer=2,
      source_length=4,
      target_length=40,
      num_repeats=1,
      config=CONFIG,
    )
  )
  full, *drafted = rows
  assert full.drafts == 0 and full.speed_up == 1.0
  assert [row.candidates for row in drafted] == [0, 16]
  for row in drafted:
    assert row.same_tokens
    assert 0.3 < row.accepted < 1.0
    # A check gives a token of its own besides those that it keeps.
    assert 1.0 <= row.tokens_per_check <= 4.0
  # Nothing but the first ids is ever said.
  assert drafted[0].accepted == drafted[1].accepted


@pytest.mark.slow
def test_it_writes_and_refuses(tmp_path, capsys):
  output = tmp_path / 'rows.json'
  arguments = ['--shapes=demo', '--acceptances=0.5', '--drafts=2']
  arguments += ['--source_length=4', '--target_length=12', '--num_repeats=1']
  with pytest.raises(SystemExit, match='t5_v1_1_base'):
    drafting_speed.main(arguments)
  with pytest.raises(SystemExit, match='between 0 and 1'):
    drafting_speed.main(['--acceptances=1.5', '--shapes=t5_v1_1_small'])
  with pytest.raises(SystemExit, match='before the last layer'):
    drafting_speed.main(['--exit_layer=8', '--shapes=t5_v1_1_small'])
  arguments[0] = '--shapes=t5_v1_1_small'
  drafting_speed.main([*arguments, f'--output={output}'])
  assert '| full model |' in capsys.readouterr().out
  assert len(json.loads(output.read_text())['rows']) == 2

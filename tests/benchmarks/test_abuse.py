"""The test of abuse: inputs of every kind, with and without a budget."""

import json

import jax
import numpy as np
import pytest

from calm_jax import checkpoints, decoding, exits, model, training
from calm_jax.benchmarks import abuse
from calm_jax.calibration import calibrate

CONFIG = model.T5Config(
  vocab_size=32,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=3,
)
KINDS = ['real', 'shuffled', 'random', 'searched, per token']
KINDS += ['searched, per output']


@pytest.fixture
def arguments(tmp_path):
  params = model.init_params(CONFIG, jax.random.key(3))
  checkpoints.save(tmp_path / 'run', 1, params=params, config=CONFIG)
  rng = np.random.default_rng(0)
  examples = [
    {'inputs': [*rng.integers(2, 30, size), 1], 'targets': [30, 1]}
    for size in rng.integers(2, 14, 7)
  ]
  tokens = str(tmp_path / 'test.npz')
  training.write_npz(tokens, examples)
  assert set(abuse.read_token_ids(tokens)) <= {*range(2, 31)}
  assert 30 in abuse.read_token_ids(tokens)
  return [
    f'--run_dir={tmp_path / "run"}',
    f'--tokens={tokens}',
    '--num_inputs=6',
    '--batch_size=4',
    '--max_length=6',
    '--num_rounds=2',
    '--variants=2',
  ]


@pytest.mark.slow
def test_it_reads_a_run_and_a_token_file(arguments, tmp_path, capsys):
  output = tmp_path / 'rows.json'
  flags = ['--threshold=0.1', '--per_request=10', '--per_token=2']
  abuse.main([*arguments, *flags, f'--output={output}'])
  printed = capsys.readouterr().out
  rows = json.loads(output.read_text())['rows']
  without, budgeted = rows[::2], rows[1::2]
  assert [row['inputs'] for row in without] == KINDS
  assert [row['inputs'] for row in budgeted] == KINDS
  assert without[0]['saving_lost'] == 0.0
  for row in without:
    assert not row['budget'] and row['use'] is None
    assert row['same_outputs'] == 1.0
    assert row['saving'] == pytest.approx(1 - row['mean_exit_layer'] / 3)
  for row in budgeted:
    assert row['largest_request'] <= 10 and row['largest_token'] <= 2
    assert row['use']['largest_request'] == row['largest_request']
  assert f'at most {budgeted[0]["largest_request"]}' in printed
  # What is searched for is not cheaper than what it is made of.
  assert without[4]['mean_request'] >= without[0]['mean_request']
  with pytest.raises(SystemExit, match='per_request 5 .*6 tokens takes'):
    abuse.main([*arguments, '--threshold=0.1', '--per_request=5'])
  with pytest.raises(SystemExit, match='neither per_request nor per_token'):
    abuse.main([*arguments, '--threshold=0.1'])
  with pytest.raises(SystemExit, match='num_inputs 0 must be'):
    abuse.main([*arguments, *flags, '--num_inputs=0'])
  with pytest.raises(SystemExit, match='batch_size 0 must be'):
    abuse.main([*arguments, *flags, '--batch_size=0'])
  with pytest.raises(SystemExit, match='either --threshold or --certificate'):
    abuse.main(arguments)


def test_a_certificate_brings_its_rule_and_its_budget(tmp_path):
  rule = exits.ConfidenceExit(
    exits.StateSimilarity(),
    exits.DecayingThreshold(0.5, temperature=4.0, max_length=6),
  )
  budget = exits.LayerBudget(rule, per_request=12, per_token=2)
  for wrapped in (rule, budget):
    policy = decoding.ComputePolicy(exit_rule=wrapped)
    path = str(tmp_path / f'{type(wrapped).__name__}.json')
    calibrate(
      np.zeros((200, 1)),
      [0.5],
      tolerance=0.1,
      error_rate=0.05,
      context={'policy': decoding.describe(policy)},
    ).save(path)
    given = dict(threshold=None, certificate=path, run_dir='nowhere')
    made = abuse.make_rule(**given, per_request=9, per_token=None)
    assert made.rule == rule and made.per_request == 9
    assert made.per_token == (2 if wrapped is budget else None)
  assert abuse.make_rule(**given, per_request=None, per_token=None) == budget

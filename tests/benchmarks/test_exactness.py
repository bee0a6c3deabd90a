"""The exactness benchmark decodes one model in all its ways."""

import itertools
import json

import jax
import numpy as np
import pytest
from cases import text_cases

from calm_jax import decoding, model, training
from calm_jax.benchmarks import exactness
from calm_jax.draft_heads import DraftHead


def test_what_is_compared():
  head = DraftHead(*np.zeros((3, 1)))
  drafter = decoding.DraftAhead(head, decoding.VerifyEvery(3))
  _, ahead = itertools.islice(
    exactness.ways([], max_length=8, drafts=4, ahead={'head': drafter}), 2
  )
  assert (ahead.name, ahead.policy.verification) == ('head', drafter)
  compared = list(exactness.ways([0.9, 0.3], max_length=8, drafts=4))
  assert [(way.name, way.threshold) for way in compared[1:]] == [
    (name, threshold)
    for threshold in (0.9, 0.3)
    for name in ('projected', 'exact', 'verified')
  ]
  assert compared[0].policy == decoding.ComputePolicy()
  for way in compared[1:]:
    assert way.policy.verifies == (way.name == 'verified')
    exact = isinstance(way.policy.cache_fill, decoding.CatchUp)
    assert exact == (way.name != 'projected')


@pytest.mark.slow
def test_it_reads_a_run_and_a_token_file(tmp_path, capsys, monkeypatch):
  config = text_cases.CONFIG
  params = model.init_params(config, jax.random.key(3))
  run = text_cases.save_run(tmp_path / 'run', params=params)
  rng = np.random.default_rng(0)
  examples = [
    {
      'inputs': [*rng.integers(2, config.vocab_size, size), 1],
      'targets': [2, 1],
    }
    for size in rng.integers(2, 7, 9)
  ]
  tokens = str(tmp_path / 'test.npz')
  training.write_npz(tokens, examples)
  output = tmp_path / 'rows.json'
  arguments = [f'--run_dir={run}', f'--tokens={tokens}', '--num_inputs=6']
  arguments += ['--timed_inputs=2', '--max_length=6', '--num_repeats=1']

  def installed_peers(params, config, folder, *, max_length):
    del params, config, folder
    return {'peer': lambda inputs: np.full((len(inputs), max_length), 3)}

  monkeypatch.setattr(exactness, 'installed_peers', installed_peers)
  more = ['--thresholds=0.05', '--first_layers=2', '--peers']
  exactness.main([*arguments, *more, f'--output={output}'])
  table = capsys.readouterr().out
  rows = json.loads(output.read_text())['rows']
  full, ahead, projected, exact, verified, peer = rows
  assert ahead['way'] == 'first 2 layers in 8 bits'
  assert ahead['same_outputs'] == 1.0 and ahead['distance'] == 0.0
  assert peer['way'] == 'peer' and peer['same_outputs'] == 0.0
  assert full['speed_up'] == 1.0 and full['distance'] == 0.0
  assert full['layers_run'] == config.num_decoder_layers
  assert verified['same_outputs'] == 1.0 and verified['distance'] == 0.0
  assert projected['mean_exit_layer'] == projected['layers_run']
  assert exact['layers_run'] >= exact['mean_exit_layer']
  assert '| verified |' in table
  with pytest.raises(SystemExit, match='There is no file'):
    exactness.main([arguments[0], '--tokens=none.npz'])

"""The weights benchmark decodes what it says, peers or none beside it."""

import math

import jax
import numpy as np
import pytest

from calm_jax import decoding, model
from calm_jax.benchmarks import (
  measured_rows,
  peers,
  weights_requests,
  weights_speed,
  weights_table,
)

SMALL = dict(
  vocab_size=64,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=4,
)
FLAGS = [
  '--shapes=tiny',
  '--source_length=8',
  '--target_length=6',
  '--num_repeats=1',
]
PEER = f'{peers.CTRANSLATE2_INT8} 9.9'


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(
    model.T5Config,
    'named',
    classmethod(lambda cls, name, **changes: cls(**SMALL, **changes)),
  )


def fake_peers(monkeypatch, *, last):
  """Has one peer decode tokens of 5, and `last` for the last ones."""
  seen = []

  def installed(params, config, folder, *, max_length, min_length):
    assert min_length == max_length
    assert not seen and config.vocab_size == 64 and 'encoder' in params

    def decode(inputs):
      seen.append(inputs)
      tokens = np.full((len(inputs), max_length), 5)
      tokens[:, -1] = last
      return tokens

    return {PEER: decode}

  monkeypatch.setattr(peers, 'installed_peers', installed)
  return seen


@pytest.mark.slow
def test_it_measures_float_and_int8_and_writes_them(
  small, monkeypatch, tmp_path, capsys
):
  seen = fake_peers(monkeypatch, last=5)
  path = tmp_path / 'weights.json'
  flags = ['--batch_sizes=1', '--peers', f'--output={path}']
  weights_speed.main([*FLAGS, *flags])
  printed = capsys.readouterr().out
  measured = measured_rows.read(path, weights_table.WeightsRow)
  rows = {row.name: row for row in measured.rows}
  assert list(rows) == [
    'float, full depth',
    'float, depths of mean L/4',
    'float, depths of mean L/4, margin checks',
    'float, depths of mean L/4, margin checks in 8 bits',
    'int8, full depth',
    'int8, depths of mean L/4',
    'int8, depths of mean L/4, margin checks',
    'int8 with its encoder, full depth',
    'bfloat16, full depth',
    PEER,
  ]
  # Tried once, and timed in one turn, with the sources of all others.
  assert len(seen) == 2 and seen[0].shape == (1, 8)
  full, peer = rows['float, full depth'], rows[PEER]
  for row in measured.rows:
    assert row.speed_up * row.milliseconds_per_step == pytest.approx(
      full.milliseconds_per_step
    )
    assert row.over_ctranslate2_int8 * row.milliseconds_per_step == (
      pytest.approx(peer.milliseconds_per_step)
    )
    assert f'| {row.milliseconds_per_step:.2f} |' in printed
  assert full.mean_exit_layer == peer.mean_exit_layer == 4.0
  assert rows['int8, depths of mean L/4'].mean_exit_layer == 1.0
  assert math.isnan(peer.megabytes) and peer.depth_loop == '-'
  # float32: counted by hand; 8 bits: what the matrices and scales lack of it.
  params = model.init_params(model.T5Config.named('tiny'), jax.random.key(0))
  sizes = {
    name: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for name, tree in params.items()
  }
  assert full.megabytes == pytest.approx(4e-6 * sum(sizes.values()))
  layer = {'matrix': 11 * 16 * 16, 'scales': 11 * 16}
  saved = 4 * (3 * layer['matrix'] - 4 * layer['scales'])
  saved += 3 * 64 * 16 - 4 * 64
  assert rows['int8, full depth'].megabytes == pytest.approx(
    full.megabytes - 1e-6 * saved
  )
  saved += 3 * 7 * 16 * 16 - 4 * 7 * 16
  assert rows['int8 with its encoder, full depth'].megabytes == (
    pytest.approx(full.megabytes - 1e-6 * saved)
  )
  weights_speed.main([f'--show={path}'])
  assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_it_needs_no_peers(small, monkeypatch, capsys):
  monkeypatch.setattr(peers, 'installed_peers', lambda *_, **__: {})
  weights_speed.main(
    [*FLAGS, '--batch_sizes=2', '--depth_loops=while', '--peers']
  )
  captured = capsys.readouterr()
  assert 'no other program is installed' in captured.err
  rows = [line for line in captured.out.splitlines() if '| while |' in line]
  assert len(rows) == 9
  assert 'tiny: int8, depths of mean L/3 | 2 | while | 1.33 |' in rows[5]
  assert all(' | - | ' in row for row in rows)


@pytest.mark.slow
def test_a_peer_that_ends_early_is_refused(small, monkeypatch):
  fake_peers(monkeypatch, last=0)
  with pytest.raises(SystemExit, match=f'{PEER} ended before 6 tokens'):
    weights_speed.main([*FLAGS, '--peers'])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--shapes=t5_huge'], 'unknown configuration'),
    (['--depth_loops=spiral'], 'spiral'),
    (['--dtype=float16'], 'dtype must be one of'),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  with pytest.raises(SystemExit, match=message):
    weights_speed.main(arguments)


def test_a_tied_output_matrix_is_counted_once():
  config = model.T5Config(**SMALL, tied_embeddings=True)
  params = model.init_params(config, jax.random.key(0))
  bound = decoding.bind(model.as_layered_decoder(config), params)
  assert weights_requests._megabytes(bound) == pytest.approx(
    1e-6 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  )

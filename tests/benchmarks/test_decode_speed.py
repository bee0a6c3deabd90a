"""The speed benchmark: it decodes what it says, and its numbers add up."""

import numpy as np
import pytest

from calm_jax import model, records
from calm_jax.benchmarks import decode_speed, forced_depths, speed_ways

SMALL = dict(
  vocab_size=64,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=4,
)


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(
    model.T5Config,
    'named',
    classmethod(lambda cls, name, **changes: cls(**SMALL, **changes)),
  )


@pytest.mark.slow
@pytest.mark.parametrize('compare', speed_ways.COMPARED)
def test_it_measures_every_way_and_writes_a_report(
  small, tmp_path, capsys, compare
):
  path = tmp_path / 'speed.json'
  decode_speed.main(
    [
      '--shapes=tiny',
      '--batch_sizes=2',
      '--source_length=8',
      '--target_length=6',
      '--num_repeats=2',
      '--depth_loops=while',
      f'--compare={compare}',
      f'--output={path}',
    ]
  )
  printed = capsys.readouterr().out
  report = records.read_record(path, records.SpeedReport)
  config = model.T5Config.named('tiny')
  ways = speed_ways.COMPARED[compare](config, 2, 6, source_length=8, seed=0)
  names = [way.name for way in ways]
  assert [row.name for row in report.rows] == names
  full = [row for row in report.rows if row.name == 'full depth']
  assert {row.mean_exit_layer for row in full} == {4.0}
  assert max(row.speed_up for row in full) == 1.0
  assert {row.ceiling for row in full} == {1.0}
  # Taken apart by decodes that fill all layers: these two are their own parts.
  for name in ('full depth', 'all after layer 1'):
    fastest = min(
      (
        row
        for row in report.rows
        if (row.name, row.cache_fill) == (name, 'eager')
      ),
      key=lambda row: row.milliseconds_per_step,
    )
    assert fastest.parts == pytest.approx(fastest.milliseconds_per_step)
  for row in report.rows:
    # Not larger than the bound: on a busy machine, so small a model's time may
    # even be less than what is taken off it.
    assert row.milliseconds_per_step * row.speed_up == pytest.approx(
      min(one.milliseconds_per_step for one in full)
    )
    assert row.bound > 0
    assert row.compile_seconds >= 0
    assert f'| {row.milliseconds_per_step:.2f} |' in printed
  decode_speed.main([f'--show={path}'])
  assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
  ('num_layers', 'mean'), [(8, 2.0), (12, 4.0), (4, 1.3)]
)
def test_random_depths_have_their_mean(num_layers, mean):
  depths = forced_depths.random_depths((4, 50), num_layers, mean=mean, seed=3)
  assert depths.mean() == pytest.approx(mean, abs=0.01)
  assert depths.min() == 1 and depths.max() <= num_layers
  assert len(np.unique(depths)) > 1


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
    decode_speed.main(arguments)

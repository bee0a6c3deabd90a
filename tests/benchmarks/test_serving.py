"""Serving a stream: when tokens arrive, and that all ways say the same."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import (
  checkpoints,
  decoding,
  model,
  records,
  reporting,
  training,
)
from calm_jax.benchmarks import (
  serving,
  serving_rows,
  serving_table,
  serving_ways,
)
from calm_jax.benchmarks.serving_clock import TokenClock


def test_a_token_waits_from_the_one_before_it():
  times = iter([0.0, 1.0, 4.0, 6.0])
  clock = TokenClock(lambda: next(times))
  clock({7: 1})
  clock({7: 2, 8: 3})
  # Two tokens of one look arrive together, and 8 had no new one.
  clock({7: 4, 8: 3})
  clock({8: 4})
  # In order: 7's second; 8's first three; 7's third and fourth; 8's fourth.
  np.testing.assert_array_equal(clock.waits, [1, 0, 0, 3, 0, 5])
  assert not TokenClock().waits.size


def test_as_published_runs_until_all_have_passed():
  """The layers that run are those of the batch's deepest row, and no others."""
  way = serving_ways.ways(0.6, steps=2)[2]
  assert (way.steps, way.refill_at) == (1, 1) and '2407.20272' in way.name
  ran = []
  decoder = toy.toy_decoder()
  count = decoder.feed_forward

  def feed_forward(params, layer, hidden):
    jax.debug.callback(lambda: ran.append(layer))
    return count(params, layer, hidden)

  counting = dataclasses.replace(decoder, feed_forward=feed_forward)
  bound = decoding.bind(counting, toy.toy_params(), depth_loop=way.depth_loop)
  # The first row is sure after two layers, the second after one.
  result = decoding.generate(
    bound,
    np.array([[1, 0], [3, 0]]),
    policy=way.policy,
    max_length=1,
    eos_id=-1,
  )
  jax.effects_barrier()
  assert result.exit_layers.ravel().tolist() == [2, 1]
  assert sorted(ran) == [0, 1]


@pytest.mark.slow
def test_all_ways_serve_the_same_tokens():
  """Rows of every way and size; their outputs are those of requests alone."""
  stream = serving_rows.Stream([np.array([n]) for n in (1, 3, 2, 1)], 2, 3)
  ways = serving_ways.ways(0.6, steps=2)
  rows = serving_rows.measure(
    toy.toy_decoder(),
    toy.toy_params(),
    stream,
    ways[1:4],
    run='toy',
    batch_sizes=(2,),
    num_repeats=1,
  )
  full, published, own = rows
  assert full.mean_exit_layer == 3
  assert published.mean_exit_layer == own.mean_exit_layer < 3
  assert {row.num_requests for row in rows} == {4}
  assert published.num_tokens == own.num_tokens
  for row in rows:
    assert row.tokens_per_second > 0
    assert 0 <= row.wait_median <= row.wait_99
  # A look per token: every token has waited.
  assert published.wait_median > 0
  with pytest.raises(ValueError, match='batch_sizes 5 must be .* 1..4'):
    serving_rows.measure(
      toy.toy_decoder(),
      toy.toy_params(),
      stream,
      ways,
      run='toy',
      batch_sizes=(5,),
      num_repeats=1,
    )


def row(way, size, rate, wait):
  return records.ServingRow(
    run='toy',
    way=way,
    batch_size=size,
    steps=1,
    num_requests=4,
    num_tokens=12,
    mean_exit_layer=2.0,
    num_layers=3,
    tokens_per_second=rate,
    wait_mean=wait,
    wait_median=wait,
    wait_99=2 * wait,
  )


ROWS = (
  row('full', 1, 100.0, 4.0),
  row('early', 1, 150.0, 2.0),
  row('full', 4, 300.0, 8.0),
  row('early', 4, 150.0, 16.0),
)


def test_the_table_holds_ways_against_full_depth_in_as_many_slots():
  measured = types.SimpleNamespace(
    rows=ROWS, flags={'num_repeats': 3}, machine='a machine'
  )
  cells = [line[5:] for line in serving_table.table(measured).rows]
  assert cells[1] == ('150 (1.50x)', '2.00 (2.00x)', '2.00', '4.00')
  assert cells[3] == ('150 (0.50x)', '16.00 (0.50x)', '16.00', '32.00')


def test_the_picture_has_a_line_per_way():
  pytest.importorskip('matplotlib')
  figure = reporting.serving_figure(ROWS)
  rates, waits = figure.axes
  assert [list(line.get_ydata()) for line in rates.get_lines()] == [
    [100, 300],
    [150, 150],
  ]
  assert [list(line.get_ydata()) for line in waits.get_lines()] == [
    [4, 8],
    [8, 16],
    [2, 16],
    [4, 32],
  ]
  with pytest.raises(ValueError, match='no rows'):
    reporting.serving_figure([])


@pytest.mark.parametrize(
  'flags, message',
  [
    ([], 'give --run_dir and --tokens, or --show'),
    (['--show=nowhere.json'], 'nowhere.json'),
    (
      ['--run_dir=nowhere', '--tokens=none', '--num_inputs=0'],
      'num_inputs 0 must be',
    ),
    (
      ['--run_dir=nowhere', '--tokens=none', '--batch_sizes=two'],
      "batch_sizes 'two' must be",
    ),
  ],
)
def test_flags_that_measure_nothing_end_in_one_line(flags, message):
  with pytest.raises(SystemExit, match=f'serving: .*{message}'):
    serving.main(flags)


@pytest.mark.slow
def test_it_reads_a_run_and_a_token_file(tmp_path, capsys):
  config = model.T5Config(
    vocab_size=32,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=2,
  )
  params = model.init_params(config, jax.random.key(3))
  checkpoints.save(tmp_path / 'run', 1, params=params, config=config)
  rng = np.random.default_rng(0)
  tokens = str(tmp_path / 'test.npz')
  training.write_npz(
    tokens,
    [
      {'inputs': [*rng.integers(2, 32, size), 1], 'targets': [2, 1]}
      for size in rng.integers(2, 14, 9)
    ],
  )
  output = tmp_path / 'rows.json'
  serving.main(
    [
      f'--run_dir={tmp_path / "run"}',
      f'--tokens={tokens}',
      '--num_inputs=8',
      '--max_length=6',
      '--num_repeats=1',
      '--batch_sizes=1,4',
      f'--output={output}',
    ]
  )
  printed = capsys.readouterr().out
  rows = json.loads(output.read_text())['rows']
  names = [way.name for way in serving_ways.ways(0.8, steps=8)]
  assert [row['way'] for row in rows] == 2 * names
  assert all(row['num_requests'] == 8 for row in rows)
  serving.main([f'--show={output}'])
  assert capsys.readouterr().out == printed

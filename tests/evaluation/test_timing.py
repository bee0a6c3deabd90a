"""Timing: what is compared with what, not how fast it is."""

import types

import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import decoding, evaluation, exits
from calm_jax.evaluation import timing

INPUTS = np.array([[1, 2], [3, 4], [9, 1], [2, 2], [5, 5]], np.int32)
POLICIES = {
  'full': decoding.ComputePolicy(),
  'static': decoding.ComputePolicy(exit_rule=exits.FixedExit(1)),
}


def time_decode(batches, policies, *, loops=None, **options):
  loops = loops or {'default': None}
  bound = {
    name: toy_decoder.toy_bound(depth_loop=loop) for name, loop in loops.items()
  }
  return evaluation.time_decode(
    bound, batches, policies, max_length=4, eos_id=-1, **options
  )


def test_a_row_per_policy_with_the_full_model_as_the_measure():
  batches = evaluation.take_batches(
    [{'encoder_input_tokens': INPUTS, 'num_valid': 5}],
    batch_size=2,
    num_batches=9,
  )
  assert len(batches) == 2
  rows = time_decode(
    batches,
    POLICIES,
    num_repeats=2,
    # A layer moves two bytes, everything else of a step four.
    bytes_of=lambda work, weights, encoder_layers, policy: (
      0.0,
      float((4 + 2 * work.attention).sum()),
    ),
  )
  assert [row.name for row in rows] == ['full', 'static']
  assert rows[0].speed_up == 1.0
  assert rows[1].speed_up == pytest.approx(
    rows[0].milliseconds_per_step / rows[1].milliseconds_per_step
  )
  assert [row.mean_exit_layer for row in rows] == [3.0, 1.0]
  assert [row.ceiling for row in rows] == [1.0, 10 / 6]
  for row in rows:
    assert (row.batch_size, row.num_batches, row.num_repeats) == (2, 2, 2)
    # Every batch decodes four tokens.
    assert row.milliseconds_per_batch == pytest.approx(
      4 * row.milliseconds_per_step
    )


def test_the_fastest_depth_loop_of_each_policy_is_reported(monkeypatch):
  clock = iter(range(10**6))

  class Result:
    lengths = np.array([2])
    exit_layers = np.array([[3, 3]])
    work = encoder_exit_layers = None

  # Reading the clock costs a tick, and the slow loop reads it once more.
  def generate(bound, *_, **__):
    if bound.depth_loop.traced_layers:
      next(clock)
    return Result()

  monkeypatch.setattr(timing.decoding, 'generate', generate)
  monkeypatch.setattr(
    timing.stopwatch.time, 'perf_counter', lambda: next(clock)
  )
  loops = {
    'slow': decoding.WhileDepthLoop(),
    'fast': decoding.UnrolledDepthLoop(),
  }
  batches = evaluation.take_batches(
    [{'encoder_input_tokens': INPUTS}], batch_size=1, num_batches=2
  )
  rows = time_decode(batches, POLICIES, loops=loops, num_repeats=3)
  assert [row.depth_loop for row in rows] == ['fast', 'fast']
  # One tick for a batch of two tokens.
  assert rows[1].milliseconds_per_batch == 1e3
  assert rows[1].milliseconds_per_step == 500.0
  assert np.isnan(rows[1].ceiling)


def test_loops_for_batches_are_not_timed_of_a_row_alone(monkeypatch):
  seen = []

  class Result:
    lengths = np.array([2])
    exit_layers = np.array([[3, 3]])
    work = encoder_exit_layers = None

  monkeypatch.setattr(timing.decoding, 'generate', lambda *_, **__: Result())
  monkeypatch.setattr(
    timing.stopwatch,
    'interleaved_seconds',
    lambda calls, num_repeats: (
      seen.extend(calls) or {key: [1.0] for key in calls}
    ),
  )
  loops = {
    'unrolled': decoding.UnrolledDepthLoop(),
    'shrinking': decoding.ShrinkingBatch(),
  }
  for batch_size, names in ((1, {'unrolled'}), (2, {*loops})):
    seen.clear()
    batches = evaluation.take_batches(
      [{'encoder_input_tokens': INPUTS}], batch_size=batch_size, num_batches=1
    )
    time_decode(batches, POLICIES, loops=loops)
    assert {key[0][1] for key in seen if key[0] != 'start'} == names


def test_filling_rows_are_not_timed():
  padded = np.concatenate([INPUTS[:3], np.zeros((1, 2), np.int32)])
  batch = {'encoder_input_tokens': padded, 'num_valid': 3}
  batches = evaluation.take_batches([batch], batch_size=1, num_batches=9)
  assert [item['encoder_input_tokens'].tolist() for item in batches] == [
    [row] for row in INPUTS[:3].tolist()
  ]
  with pytest.raises(ValueError, match='empty row'):
    time_decode([batch], POLICIES)


def test_bad_arguments_are_named():
  batch = {'encoder_input_tokens': INPUTS}
  with pytest.raises(ValueError, match="'full' is not among"):
    time_decode([batch], {'static': POLICIES['static']})
  with pytest.raises(ValueError, match='no batches'):
    time_decode([], POLICIES)
  with pytest.raises(ValueError, match='num_repeats is 0'):
    time_decode([batch], POLICIES, num_repeats=0)
  with pytest.raises(ValueError, match='one shape'):
    time_decode([batch, {'encoder_input_tokens': INPUTS[:2]}], POLICIES)
  with pytest.raises(ValueError, match='a batch of 6'):
    evaluation.take_batches([batch], batch_size=6, num_batches=1)


def test_outputs_of_another_length_gain_nothing_by_the_encoder(monkeypatch):
  """10 s once and 1 s per step: a step takes 1 s whatever the length is."""
  now = [0.0]

  def take(seconds):
    now[0] += seconds

  def result(steps):
    return types.SimpleNamespace(
      lengths=np.array([steps]),
      exit_layers=np.full((1, steps), 3),
      work=steps,
      encoder_exit_layers=None,
    )

  def generate(*_, policy, **__):
    steps = 2 if policy == POLICIES['full'] else 20
    take(10.0 + steps)
    return result(steps)

  monkeypatch.setattr(timing.decoding, 'generate', generate)
  monkeypatch.setattr(timing.decoding, 'start', lambda *_, **__: take(10.0))
  monkeypatch.setattr(timing.stopwatch.time, 'perf_counter', lambda: now[0])
  batches = [{'encoder_input_tokens': INPUTS[:1]}]
  full, longer = time_decode(
    batches,
    POLICIES,
    bytes_of=lambda work, weights, layers, policy: (10.0, float(work)),
  )
  assert full.milliseconds_per_step == longer.milliseconds_per_step == 6e3
  assert longer.speed_up == longer.ceiling == 1.0
  assert longer.milliseconds_per_batch == 30e3

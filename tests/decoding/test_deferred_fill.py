"""Deferred propagation says what eager propagation says, and does less.

The toy decoder's numbers are whole, so both must agree to the bit. Its cache
starts as NaN here: a value that is read before it was written ends in the
result.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes import toy_decoder as toy

from calm_jax import decoding, exits

LOOPS = (decoding.WhileDepthLoop(), decoding.UnrolledDepthLoop())
L, T = 4, 8
INPUTS = np.array([[1], [2], [3]])
EAGER = decoding.ProjectExitState()
# Blocks smaller than what is missing, with uneven ends.
DEFERRED = decoding.DeferredExitState(3)


def schedules(batch_size, number=8):
  """Returns exit layers [N, B, T]: shallow for long, deep now and then."""
  rng = np.random.default_rng(batch_size)
  layers = rng.integers(1, L + 1, (number, batch_size, T))
  return np.where(rng.random(layers.shape) < 0.5, 1, layers)


def start(exit_layers, fill, *, depth_loop=LOOPS[0]):
  """Starts a decode of the toy on a cache of NaN."""
  state = decoding.start(
    toy.toy_bound(L, depth_loop=depth_loop),
    INPUTS[: len(exit_layers)],
    policy=decoding.ComputePolicy(
      cache_fill=fill, exit_rule=exits.ScheduledExit(exit_layers)
    ),
    max_length=T,
    eos_id=9,
  )
  cache = state.carry.cache
  cache = {**cache, 'values': jnp.full_like(cache['values'], jnp.nan)}
  carry = dataclasses.replace(state.carry, cache=cache)
  return dataclasses.replace(state, carry=carry)


def decode(*args, **options):
  """Returns the result of a decode and the carry that it ended with."""
  state = decoding.advance(start(*args, **options))
  return decoding.finish(state), state.carry


def assert_same(one, other):
  # Both do their work at different times.
  one, other = (
    dataclasses.replace(result, work=None) for result in (one, other)
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
  ('batch_size', 'fill', 'depth_loop'),
  [
    (3, DEFERRED, LOOPS[0]),
    (1, DEFERRED, LOOPS[1]),
    *(
      pytest.param(size, fill, loop, marks=pytest.mark.slow)
      for size, fill, loop in (
        (1, DEFERRED, LOOPS[0]),
        (3, DEFERRED, LOOPS[1]),
        (3, decoding.DeferredExitState(1), LOOPS[0]),
        (3, decoding.DeferredExitState(99), LOOPS[0]),
      )
    ),
  ],
)
def test_equals_eager_propagation(batch_size, fill, depth_loop):
  """Results agree, and what is read; the rest of K/V was never made."""
  lengths = set()
  for exit_layers in schedules(batch_size):
    eager, carry = decode(exit_layers, EAGER, depth_loop=depth_loop)
    expected = np.asarray(carry.cache['values'])
    deferred, carry = decode(exit_layers, fill, depth_loop=depth_loop)
    assert_same(deferred, eager)
    exited = np.asarray(eager.exit_layers)
    read = filled_by(exited[:, None] > np.arange(L)[:, None])
    values = np.asarray(carry.cache['values'])
    np.testing.assert_array_equal(values[read], expected[read])
    assert np.isnan(values[~read]).all()
    pending = carry.policy.cache_fill
    np.testing.assert_array_equal(pending.filled, read.sum(axis=-1))
    assert (np.asarray(pending.exit_states)[exited == -1] == 0.0).all()
    lengths.update(eager.lengths.tolist())
  assert len(lengths) > 1, 'no row ended before another'


def filled_by(layers_run):
  """Returns which K/V are read, bool [B, L, T]: up to a layer's last run."""
  return np.flip(np.logical_or.accumulate(np.flip(layers_run, -1), -1), -1)


def test_steps_of_advance_change_nothing():
  for exit_layers in schedules(3, number=2):
    whole, _ = decode(exit_layers, DEFERRED)
    state = start(exit_layers, DEFERRED)
    for steps in (1, 3, 2, None):
      state = decoding.advance(state, steps)
    assert_same(decoding.finish(state), whole)


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_rows_at_different_positions(depth_loop):
  """A row joins others that are 3 and 5 positions ahead, as in refilling."""
  for exit_layers in schedules(3, number=2):
    whole, _ = decode(exit_layers, EAGER)
    carries = [
      decoding.advance(
        start(exit_layers, DEFERRED, depth_loop=depth_loop), steps
      ).carry
      for steps in (3, 0, 5)
    ]
    mixed = jax.tree.map(
      lambda *rows: jnp.stack([row[i] for i, row in enumerate(rows)]), *carries
    )
    state = start(exit_layers, DEFERRED, depth_loop=depth_loop)
    state = decoding.advance(dataclasses.replace(state, carry=mixed))
    assert_same(decoding.finish(state), whole)


@pytest.mark.slow
def test_equals_eager_propagation_on_t5():
  def run(exit_layers, fill):
    with jax.default_matmul_precision('highest'):
      return decoding.generate(
        cases.bound(decoding.UnrolledDepthLoop()),
        cases.inputs()[:3],
        policy=decoding.ComputePolicy(
          cache_fill=fill, exit_rule=exits.ScheduledExit(exit_layers)
        ),
        max_length=T,
        eos_id=cases.EOS_ID,
      )

  for exit_layers in schedules(3, number=4):
    eager = run(exit_layers, EAGER)
    deferred = run(exit_layers, DEFERRED)
    np.testing.assert_array_equal(deferred.tokens, eager.tokens)
    np.testing.assert_array_equal(deferred.exit_layers, eager.exit_layers)
    np.testing.assert_allclose(deferred.scores, eager.scores, atol=1e-4)


@pytest.mark.parametrize('block_size', [0, 2.5])
def test_bad_block_sizes_are_refused(block_size):
  with pytest.raises(ValueError, match='block_size'):
    start(schedules(1)[0], decoding.DeferredExitState(block_size))

"""With `CatchUp` the K/V that are read are the full model's, to the bit.

The toy decoder's numbers are whole. Its cache starts as NaN here: a value that
is read before it was written ends in the result. `test_policy_laws.py` has the
same for every policy of the table (law 10).
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits

LOOPS = (
  decoding.WhileDepthLoop(),
  decoding.UnrolledDepthLoop(),
  decoding.CompactingDepthLoop(),
)
L, T, EOS_ID = 4, 12, 9
INPUTS = np.array([[1], [2], [3]])
PREFIX = np.array([[3], [2], [7]])


def schedules(number=5):
  """Returns exit layers [N, B, T]: shallow for long, deep now and then."""
  rng = np.random.default_rng(1)
  layers = rng.integers(1, L + 1, (number, len(INPUTS), T))
  return np.where(rng.random(layers.shape) < 0.6, 1, layers)


def start(exit_layers, block_sizes, depth_loop=LOOPS[0]):
  """Starts a decode of the toy on a cache of NaN; rows begin differently."""
  state = decoding.start(
    toy.toy_bound(L, depth_loop=depth_loop),
    INPUTS[: len(exit_layers)],
    policy=decoding.ComputePolicy(
      cache_fill=decoding.CatchUp(block_sizes),
      exit_rule=exits.ScheduledExit(exit_layers),
    ),
    max_length=T,
    eos_id=EOS_ID,
    forced_prefix=PREFIX[: len(exit_layers)],
  )
  cache = state.carry.cache
  cache = {**cache, 'values': jnp.full_like(cache['values'], jnp.nan)}
  carry = dataclasses.replace(state.carry, cache=cache)
  return dataclasses.replace(state, carry=carry)


@jax.jit
def full_values(tokens):
  """Returns what enters every layer of the full model, [B, L, T]."""
  bound = toy.toy_bound(L)
  batch_size = len(tokens)
  cache = bound.start(bound.encode(INPUTS[:batch_size]), T)
  positions = jnp.broadcast_to(jnp.arange(T), (batch_size, T))
  shifted = jnp.pad(jnp.asarray(tokens), ((0, 0), (1, 0)))[:, :-1]
  hidden = bound.embed(shifted, positions)
  for layer in range(L):
    cache = bound.fill_layer(layer, hidden, positions, cache)
    hidden = bound.attend(layer, hidden, positions, cache)
    hidden = bound.feed_forward(layer, hidden)
  return cache['values']


def assert_exact(state):
  """Asserts K/V wherever a layer has run, and none anywhere else."""
  result = jax.tree.map(np.asarray, decoding.finish(state))
  deeper = result.exit_layers[:, None] > np.arange(L)[:, None]
  ran = np.flip(np.logical_or.accumulate(np.flip(deeper, -1), -1), -1)
  values = np.asarray(state.carry.cache['values'])
  expected = np.asarray(full_values(result.tokens))
  np.testing.assert_array_equal(values[ran], expected[ran])
  assert np.isnan(values[~ran]).all()
  caught_up = ran.sum() - result.work.attention.sum()
  assert result.work.caught_up.sum() == caught_up
  return result


@pytest.mark.parametrize(
  ('batch_size', 'block_sizes', 'depth_loop'),
  [
    (3, (1, 3), LOOPS[0]),
    *(
      pytest.param(size, (1, 3), loop, marks=pytest.mark.slow)
      for size, loop in itertools.product((1, 3), LOOPS)
      if (size, loop) != (3, LOOPS[0])
    ),
    # More companions than a block holds; a block longer than outputs.
    *(
      pytest.param(size, sizes, loop, marks=pytest.mark.slow)
      for size, sizes, loop in (
        (3, (1,), LOOPS[1]),
        (3, (2,), LOOPS[0]),
        (1, (99,), LOOPS[1]),
      )
    ),
  ],
)
def test_values_are_the_full_models(batch_size, block_sizes, depth_loop):
  late, lengths = 0, set()
  for exit_layers in schedules():
    state = start(exit_layers[:batch_size], block_sizes, depth_loop)
    result = assert_exact(decoding.advance(state))
    late += result.work.caught_up.sum()
    lengths.update(result.lengths.tolist())
  assert late > 0
  assert len(lengths) > 1 or batch_size == 1, 'no row ended before another'


def test_projecting_says_something_else():
  """Else nothing above shows anything."""
  exit_layers = schedules()[0]
  exact = decoding.finish(decoding.advance(start(exit_layers, (4,))))
  projected = decoding.generate(
    toy.toy_bound(L),
    INPUTS,
    policy=exits.ScheduledExit(exit_layers),
    max_length=T,
    eos_id=EOS_ID,
    forced_prefix=PREFIX,
  )
  assert (exact.tokens != projected.tokens).any()


def test_steps_of_advance_change_nothing():
  exit_layers = schedules()[0]
  whole = decoding.finish(decoding.advance(start(exit_layers, (1, 3))))
  state = start(exit_layers, (1, 3))
  for steps in (1, 3, 2, None):
    state = decoding.advance(state, steps)
    assert_exact(state)
  jax.tree.map(np.testing.assert_array_equal, decoding.finish(state), whole)


@pytest.mark.parametrize(
  'depth_loop', [LOOPS[0], pytest.param(LOOPS[1], marks=pytest.mark.slow)]
)
def test_rows_at_different_positions(depth_loop):
  """A row joins others that are 3 and 5 positions ahead, as in refilling."""
  exit_layers = schedules()[1]
  whole = decoding.finish(decoding.advance(start(exit_layers, (2,))))
  carries = [
    decoding.advance(start(exit_layers, (2,), depth_loop), steps).carry
    for steps in (3, 0, 5)
  ]
  mixed = jax.tree.map(
    lambda *rows: jnp.stack([row[i] for i, row in enumerate(rows)]), *carries
  )
  state = start(exit_layers, (2,), depth_loop)
  state = decoding.advance(dataclasses.replace(state, carry=mixed))
  assert_exact(state)
  for field in ('tokens', 'exit_layers'):
    np.testing.assert_array_equal(
      getattr(decoding.finish(state), field), getattr(whole, field)
    )


@pytest.mark.parametrize(
  'depth_loop', [LOOPS[0], pytest.param(LOOPS[1], marks=pytest.mark.slow)]
)
def test_a_budget_pays_for_those_that_catch_up(depth_loop):
  """A deep token after many shallow ones runs their layers, too."""
  wanted = np.ones((3, T), int)
  wanted[:, 5] = 2
  wanted[:, 9:] = L

  def spent(per_request):
    result = decoding.generate(
      toy.toy_bound(L, depth_loop=depth_loop),
      INPUTS,
      policy=decoding.ComputePolicy(
        cache_fill=decoding.CatchUp((3,)),
        exit_rule=exits.LayerBudget(
          exits.ScheduledExit(wanted), per_request=per_request
        ),
      ),
      max_length=T,
      eos_id=-1,
    )
    work = result.work
    return np.asarray((work.attention + work.caught_up).sum(axis=1))

  for spare in (T, T + 3, T + 7, T + 20, L * T):
    assert (spent(spare) <= spare).all(), spare
  # Position 5 takes 5 others along, which is one layer each and its own.
  np.testing.assert_array_equal(spent(T + 5), T)
  np.testing.assert_array_equal(spent(T + 6), T + 6)
  np.testing.assert_array_equal(spent(L * T), L * T)


@pytest.mark.parametrize(
  ('block_sizes', 'message'),
  [
    ((), 'give one or more'),
    (4, 'give one or more'),
    ((0, 4), 'a block size of CatchUp'),
    ((4, 2), 'ascending'),
    ((4, 4), 'ascending'),
    ((2.5,), 'a block size of CatchUp'),
  ],
)
def test_bad_block_sizes_are_refused(block_sizes, message):
  with pytest.raises(ValueError, match=message):
    start(schedules()[0], block_sizes)


def test_block_sizes_as_json_has_them():
  assert decoding.CatchUp([2, 8]) == decoding.CatchUp((2, 8))

"""Every slot of a policy is obeyed by every depth loop.

The null objects leave most of the seam idle; here each slot has a test double
that keeps state per row, so that the loops' masking and threading can be seen.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits
from calm_jax.interfaces import (
  AddsNothing,
  LayerWork,
  NoCompanions,
  PlansAhead,
  Reading,
)
from calm_jax.pytrees import register_pytree

LOOPS = (decoding.WhileDepthLoop(), decoding.UnrolledDepthLoop())
INPUTS = np.array([[1], [1], [1]])


@register_pytree
@dataclasses.dataclass(frozen=True)
class _Slot:
  def check(self, decoder, batch_size, max_length):
    return self

  def init(self, decoder, batch_size, max_length):
    """Returns how often each row was asked, int32 [B]."""
    return jnp.zeros((batch_size,), jnp.int32)


@register_pytree
@dataclasses.dataclass(frozen=True)
class CountingRule(_Slot):
  """Stops row r after r + 1 layers; counts the layers it saw per row."""

  needs_logits: ClassVar[bool] = True

  def looks(self, layer):
    return True

  def step(self, state, view):
    stops = view.layer >= jnp.arange(state.shape[0])
    return state + 1, stops, view.logits.max(axis=-1) * 0.0


@register_pytree
@dataclasses.dataclass(frozen=True)
class CountingPlan(PlansAhead, _Slot):
  """Row 0 runs no attention, row 1 no FFN; counts the layers per row."""

  def before(self, state, view):
    return state + 1, LayerWork(
      attention=jnp.arange(state.shape[0]) != 0,
      feed_forward=jnp.arange(state.shape[0]) != 1,
    )


@register_pytree
@dataclasses.dataclass(frozen=True)
class CountingReadout(AddsNothing, _Slot):
  """Reads out over the candidates 9, 3, 1, 0; counts the reads per row."""

  reads_exit_states: ClassVar[bool] = False
  needs_whole_matrix: ClassVar[bool] = False

  def keep_rows(self, bound):
    return self

  def over_all(self):
    return self

  def num_outputs(self, vocab_size, *, layer, first):
    return 4

  def step(self, state, bound, *, hidden, layer, first, active):
    ids = jnp.broadcast_to(jnp.array([9, 3, 1, 0]), (hidden.shape[0], 4))
    weights = bound.output_rows(ids)
    return state + active, Reading(bound.logits(hidden, weights), ids)


@register_pytree
@dataclasses.dataclass(frozen=True)
class CountingFill(NoCompanions, _Slot):
  """Fills like CALM; counts the layers it was shown per row."""

  def step(self, state, bound, *, alive, **layer):
    _, cache, work = decoding.ProjectExitState().step(
      None, bound, alive=alive, **layer
    )
    return state + alive, cache, work


def decode(depth_loop, steps=None, eos_id=-1, **slots):
  state = decoding.start(
    toy.toy_bound(depth_loop=depth_loop),
    INPUTS,
    policy=decoding.ComputePolicy(**slots),
    max_length=3,
    eos_id=eos_id,
  )
  state = decoding.advance(state, steps)
  return decoding.finish(state), state.carry.policy


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_states_change_only_for_rows_that_compute(depth_loop):
  _, states = decode(
    depth_loop,
    steps=2,
    layer_plan=CountingPlan(),
    cache_fill=CountingFill(),
    readout=CountingReadout(),
    exit_rule=CountingRule(),
  )
  np.testing.assert_array_equal(states.layer_plan, [2, 4, 6])
  np.testing.assert_array_equal(states.readout, [2, 4, 6])
  np.testing.assert_array_equal(states.exit_rule, [2, 4, 6])
  # A fill sees all layers of every position, run or not.
  np.testing.assert_array_equal(states.cache_fill, [6, 6, 6])


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_states_of_ended_rows_stay(depth_loop):
  """Exits 1, 2, 3 at position 0 say 1, 2, 3; the row that says 2 has ended."""
  result, states = decode(
    depth_loop,
    eos_id=2,
    steps=2,
    cache_fill=CountingFill(),
    exit_rule=CountingRule(),
  )
  np.testing.assert_array_equal(result.tokens[:, 0], [1, 2, 3])
  np.testing.assert_array_equal(states.cache_fill, [6, 3, 6])
  np.testing.assert_array_equal(states.exit_rule, [2, 2, 6])


@pytest.mark.parametrize('depth_loop', LOOPS)
def test_a_plan_leaves_out_sublayers_row_by_row(depth_loop):
  """Row 0 counts up by the FFN alone, row 1 stands still, row 2 is full."""
  result, _ = decode(depth_loop, layer_plan=CountingPlan())
  np.testing.assert_array_equal(result.tokens[1], [0, 0, 0])
  np.testing.assert_array_equal(result.tokens[2], toy.FULL_TOKENS[:3])
  # Without attention row 0 is never sure of anything (k stays 0): its token x
  # has the lowest logit, so the first other token, 0, is said.
  np.testing.assert_array_equal(result.tokens[0], [0, 0, 0])


@pytest.mark.parametrize('depth_loop', LOOPS)
@pytest.mark.parametrize('rule', [exits.FixedExit(1), CountingRule()])
def test_candidates_are_mapped_back(depth_loop, rule):
  """Row 0 says 1 after one layer, the third of the candidates."""
  result, states = decode(
    depth_loop, steps=1, readout=CountingReadout(), exit_rule=rule
  )
  assert result.tokens[0, 0] == 1
  if not rule.needs_logits:
    np.testing.assert_array_equal(states.readout, [1, 1, 1])


def test_static_knowledge_leaves_no_branch():
  """A rule that never looks compiles to straight code, layer after layer."""

  def branches(rule):
    def run(inputs):
      return decoding.generate(
        toy.toy_bound(depth_loop=decoding.UnrolledDepthLoop()),
        inputs,
        policy=decoding.ComputePolicy(exit_rule=rule),
        max_length=2,
      )

    return str(jax.make_jaxpr(run)(INPUTS)).count(' cond[')

  margin = exits.SoftmaxMargin()
  assert branches(exits.NeverExit()) == 0
  assert branches(exits.ConfidenceExit(margin, 0.5)) == 2
  late = exits.ConfidenceExit(margin, 0.5, minimum_exit_layer=2)
  assert branches(late) == 1

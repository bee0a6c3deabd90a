"""What every exit of every token says, however early tokens leave.

With `CatchUp` all K/V that are read are those of the full model, teacher forced
with the tokens that were said. So what an exit says of a position depends on
the tokens before it and on no threshold: one pass over an output, many
positions at once, tells it for any. Where a threshold says another token than
the output has, `extending` goes on from there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import sharding
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.catch_up import CatchUp
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.states import DecodeState, Search
from calm_jax.exits.candidates import best_two, first_best, total_over_best
from calm_jax.interfaces import BoundDecoder, LayerView
from calm_jax.pytrees import register_pytree

# States that run together: enough for matrix products to be at their best, few
# enough for their logits to have room.
_STATES = 256


@register_pytree
@dataclasses.dataclass(frozen=True)
class Trace:
  """What every exit of every position says. Behind an output: anything.

  Attributes:
    confidences: float32 [B, T, L], NaN where the exit rule does not look.
    tokens: int32 [B, T, L], the best token of the state after a layer.
    leads: float32 [B, T, L], by how much its logit exceeds the second best.
    log_probabilities: float32 [B, T, L], the best token's.
  """

  confidences: Array
  tokens: Array
  leads: Array
  log_probabilities: Array


def trace(state: DecodeState, tokens: Array, lengths: Array) -> Trace:
  """Returns what every exit says while the full model is given its tokens.

  A layer's readout is looked at where the exit rule looks, and at the last one.

  Args:
    state: a decode that has just been started, with `CatchUp`, an exit rule
      that has a measure, and a readout of all of the vocabulary.
    tokens: int32 [B, T], the outputs.
    lengths: int32 [B], how many of them count.

  Raises:
    ValueError: for another cache fill, an exit rule without a measure, or a
      decode with more than a row per input, forced tokens or drafts.
  """
  check_followed(state)
  rows = state.carry.cache, *whole(tokens, lengths)
  return _trace(rows, state.bound, state.policy)


def check_followed(state: DecodeState) -> None:
  """Raises ValueError for a decode of which nothing here is true."""
  fill, carry = state.policy.cache_fill, state.carry
  if not isinstance(fill, CatchUp):
    raise ValueError(
      'the K/V before a token are those of the full model under CatchUp alone, '
      f'and the policy has {type(fill).__name__}; decode it'
    )
  if (
    isinstance(state.sampler, Search)
    or state.rows_per_request > 1
    or not state.sampler.deterministic
    or carry.forced is not None
    or carry.drafts is not None
  ):
    raise ValueError(
      'a decode with samples, beams, forced tokens or drafts does not follow '
      'from what exits say; leave them out'
    )
  rule = state.policy.exit_rule
  if not hasattr(rule, 'measure'):
    raise ValueError(
      f'{type(rule).__name__} has no measure of the state after a layer, so '
      'that nothing can be said of its exits beforehand; decode it'
    )


def whole(*arrays: Array) -> list[Array]:
  """Returns arrays as int32."""
  return [jnp.asarray(array, jnp.int32) for array in arrays]


@jax.jit
def _trace(rows: tuple, bound: BoundDecoder, policy: ComputePolicy) -> Trace:
  return sharding.map_rows(_trace_rows, bound.mesh)(rows, bound, policy)


def _trace_rows(rows, bound, policy) -> Trace:
  """The trace of all rows, or those of one part of a mesh."""
  cache, tokens, lengths = rows

  def look(layer, positions, entering, leaving):
    return look_at_exit(bound, policy, layer, positions, entering, leaving)

  empty = nothing(tokens.shape, bound.num_layers)
  _, found = run_blocks(bound, tokens, lengths, cache, look, empty)
  return found


def nothing(shape: tuple[int, ...], num_layers: int) -> Trace:
  """Returns a trace of zeros."""
  numbers = jnp.zeros((*shape, num_layers), jnp.float32)
  tokens = jnp.zeros((*shape, num_layers), jnp.int32)
  return Trace(numbers, tokens, numbers, numbers)


def run_blocks(
  bound: BoundDecoder,
  tokens: Array,
  lengths: Array,
  cache: PyTree,
  look: Callable[..., PyTree],
  found: PyTree,
) -> tuple[PyTree, PyTree]:
  """Runs all layers of the first positions of every row, block after block.

  Args:
    bound: the decoder with its parameters.
    tokens: int32 [B, T], what is said there.
    lengths: int32 [B], how many positions of a row are run.
    cache: where their K/V are written.
    look: from a layer, positions [P], states [B, P, D] that enter it and that
      leave it to what is kept of them, [B, P] each.
    found: arrays [B, T, L] to keep that in.

  Returns:
    The cache, and what was found.
  """
  batch_size, max_length = tokens.shape
  size = min(max(1, _STATES // batch_size), max_length)
  said_before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]

  def unfinished(carry):
    return carry[0] * size < lengths.max()

  def run_block(carry):
    number, cache, found = carry
    # The last block may begin inside the one before it.
    start = jnp.minimum(number * size, max_length - size)
    positions = start + jnp.arange(size)
    where = positions < lengths[:, None]
    hidden = bound.embed(
      lax.dynamic_slice_in_dim(said_before, start, size, axis=1), positions
    )

    def run_layer(carry, layer):
      entering, cache = carry
      cache = bound.fill_layer(layer, entering, positions, cache, where)
      leaving = bound.attend(layer, entering, positions, cache)
      leaving = bound.feed_forward(layer, leaving)
      return (leaving, cache), look(layer, positions, entering, leaving)

    (_, cache), seen = bound.over_layers(run_layer, (hidden, cache))
    found = jax.tree.map(
      lambda array, block: lax.dynamic_update_slice_in_dim(
        array, jnp.moveaxis(block, 0, -1), start, axis=1
      ),
      found,
      seen,
    )
    return number + 1, cache, found

  carry = jnp.int32(0), cache, found
  _, cache, found = lax.while_loop(unfinished, run_block, carry)
  return cache, found


def look_at_exit(
  bound: BoundDecoder,
  policy: ComputePolicy,
  layer: Array | int,
  positions: Array,
  entering: Array,
  leaving: Array,
) -> Trace:
  """Returns what an exit after a layer says at every position, [B, P]."""
  rule: Any = policy.exit_rule
  shape = leaving.shape[:2]
  looks, last = rule.looks(layer), layer == bound.num_layers - 1

  def flat(states):
    return states.reshape(-1, states.shape[-1])

  def skip(_):
    nothing = jnp.full(shape, jnp.nan, jnp.float32)
    return Trace(nothing, jnp.zeros(shape, jnp.int32), nothing, nothing)

  def read(_):
    logits = _read(bound, policy, layer, leaving)
    view = LayerView(
      layer=layer,
      positions=jnp.broadcast_to(positions, shape).reshape(-1),
      hidden=flat(leaving),
      previous_hidden=flat(entering),
      logits=logits if rule.needs_logits else None,
      token_ids=None,
      log_total=None,
      active=jnp.ones(logits.shape[:1], bool),
    )
    confidences = rule.measure.confidence(view).astype(jnp.float32)
    best, second = best_two(logits)
    found = Trace(
      confidences=jnp.where(looks, confidences, jnp.nan),
      tokens=first_best(logits),
      leads=best - second,
      log_probabilities=-jnp.log(total_over_best(logits, best, None)),
    )
    return jax.tree.map(lambda values: values.reshape(shape), found)

  wanted = looks | last
  if isinstance(wanted, bool):
    return read(None) if wanted else skip(None)
  return lax.cond(wanted, read, skip, None)


def _read(
  bound: BoundDecoder,
  policy: ComputePolicy,
  layer: Array | int,
  states: Array,
) -> Array:
  """Returns logits [B * P, V] of states [B, P, D] after a layer."""
  states = states.reshape(-1, states.shape[-1])
  _, reading = policy.readout.step(
    policy.readout.init(bound.decoder, len(states), 1),
    bound,
    hidden=states,
    layer=layer,
    first=True,
    active=jnp.ones(states.shape[:1], bool),
  )
  return reading.logits

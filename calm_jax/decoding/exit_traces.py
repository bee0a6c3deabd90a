"""What every exit of every token says, however early tokens leave.

With `CatchUp` all K/V that are read are those of the full model, teacher forced
with the tokens that were said. So what an exit says of a position depends on
the tokens before it and on no threshold: one pass over an output, many
positions at once, tells it for any (`trace`). Where a threshold says another
token than the output has, `extend` goes on from there, with all layers of each
token, so that what it sees is known for any threshold as well.
"""

import dataclasses
import functools
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
    ValueError: for another cache fill, or a decode with more than a row per
      input, forced tokens or drafts.
  """
  _check(state)
  rows = state.carry.cache, *_whole(tokens, lengths)
  return _trace(rows, state.bound, state.policy)


def extend(
  state: DecodeState, tokens: Array, lengths: Array, thresholds: Array
) -> tuple[Array, Array, Trace]:
  """Decodes rows from behind tokens that they have said, greedily.

  Every token runs all layers, and is that of the first exit whose confidence
  reaches the threshold.

  Args:
    state: as for `trace`.
    tokens: int32 [B, T], what the rows have said, 0 behind it.
    lengths: int32 [B], 0..T-1, how many tokens that is; none of them ended its
      row.
    thresholds: float32 [T], of every position.

  Returns:
    Tokens [B, T] and lengths [B] once every row has ended, and what the exits
    of the new tokens say; 0 at those that were given.

  Raises:
    ValueError: as `trace`.
  """
  _check(state)
  rows = state.carry.cache, *_whole(tokens, lengths)
  thresholds = jnp.asarray(thresholds, jnp.float32)
  return _extend(
    rows, state.bound, state.policy, thresholds, eos_id=state.eos_id
  )


def _check(state: DecodeState) -> None:
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


def _whole(*arrays: Array) -> list[Array]:
  return [jnp.asarray(array, jnp.int32) for array in arrays]


@jax.jit
def _trace(rows: tuple, bound: BoundDecoder, policy: ComputePolicy) -> Trace:
  return sharding.map_rows(_trace_rows, bound.mesh)(rows, bound, policy)


@functools.partial(jax.jit, static_argnames=('eos_id',))
def _extend(rows, bound, policy, thresholds, *, eos_id):
  extend_rows = functools.partial(_extend_rows, eos_id=eos_id)
  return sharding.map_rows(extend_rows, bound.mesh)(
    rows, bound, policy, thresholds
  )


def _trace_rows(rows, bound, policy) -> Trace:
  """The trace of all rows, or those of one part of a mesh."""
  cache, tokens, lengths = rows

  def look(layer, positions, entering, leaving):
    return _look(bound, policy, layer, positions, entering, leaving)

  nothing = _nothing(tokens.shape, bound.num_layers)
  _, found = _run_blocks(bound, tokens, lengths, cache, look, nothing)
  return found


def _extend_rows(rows, bound, policy, thresholds, *, eos_id):
  """Extends all rows, or those of one part of a mesh."""
  cache, tokens, lengths = rows
  batch_size, max_length = tokens.shape
  cache, _ = _run_blocks(bound, tokens, lengths, cache, lambda *_: None, None)
  # Nothing ends a row at its last layer but this.
  limits = jnp.where(
    jnp.arange(bound.num_layers) < bound.num_layers - 1,
    thresholds[:, None],
    -jnp.inf,
  )

  def unfinished(carry):
    return carry[2].any()

  def decode_token(carry):
    tokens, positions, alive, cache, found = carry
    at = jnp.minimum(positions, max_length - 1)[:, None]
    before = jnp.take_along_axis(tokens, jnp.maximum(at - 1, 0), axis=1)
    hidden = bound.embed(jnp.where(at > 0, before, 0), at)

    def run_layer(carry, layer):
      entering, cache = carry
      cache = bound.fill_layer(layer, entering, at, cache, alive)
      leaving = bound.attend(layer, entering, at, cache)
      leaving = bound.feed_forward(layer, leaving)
      seen = _look(bound, policy, layer, at, entering, leaving)
      return (leaving, cache), seen

    (_, cache), seen = _over_layers(bound, run_layer, (hidden, cache))
    seen = jax.tree.map(lambda values: jnp.moveaxis(values, 0, -1), seen)
    # A confidence that is no number reaches nothing, but at the last layer.
    reached = jnp.nan_to_num(seen.confidences[:, 0], nan=-1.0)
    exits = (reached >= limits[at[:, 0]]).argmax(axis=-1)
    said = seen.tokens[jnp.arange(batch_size), 0, exits]
    here = (jnp.arange(max_length) == at) & alive[:, None]
    tokens = jnp.where(here, said[:, None], tokens)
    found = jax.tree.map(
      lambda array, new: jnp.where(here[..., None], new, array), found, seen
    )
    positions = positions + alive
    alive &= (said != eos_id) & (positions < max_length)
    return tokens, positions, alive, cache, found

  carry = (
    tokens,
    lengths,
    lengths < max_length,
    cache,
    _nothing(tokens.shape, bound.num_layers),
  )
  tokens, lengths, _, _, found = lax.while_loop(unfinished, decode_token, carry)
  return tokens, lengths, found


def _nothing(shape: tuple[int, ...], num_layers: int) -> Trace:
  """Returns a trace of zeros."""
  numbers = jnp.zeros((*shape, num_layers), jnp.float32)
  tokens = jnp.zeros((*shape, num_layers), jnp.int32)
  return Trace(numbers, tokens, numbers, numbers)


def _run_blocks(
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

    (_, cache), seen = _over_layers(bound, run_layer, (hidden, cache))
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


def _over_layers(
  bound: BoundDecoder, run_layer: Callable, carry: PyTree
) -> tuple[PyTree, PyTree]:
  """Scans over layers, written out where the parameters lie apart."""
  if bound.depth_loop.traced_layers:
    return lax.scan(run_layer, carry, jnp.arange(bound.num_layers))
  seen = []
  for layer in range(bound.num_layers):
    carry, of_layer = run_layer(carry, layer)
    seen.append(of_layer)
  return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *seen)


def _look(
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

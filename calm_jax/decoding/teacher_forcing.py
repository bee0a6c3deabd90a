"""Given outputs, run through all layers many positions at once.

With `CatchUp` all K/V that are read are those of the full model, teacher forced
with the tokens that were said. So one pass over an output says what every exit
of every token would have done (`trace`), for any threshold, as far as the
tokens stay the same; and a decode may begin behind tokens that are known
(`resume`), with the K/V of all layers of theirs in the cache.
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
from calm_jax.decoding.states import Carry, DecodeState, Search
from calm_jax.exits.candidates import best_two, first_best, total_over_best
from calm_jax.interfaces import BoundDecoder, LayerView
from calm_jax.pytrees import register_pytree

# States that run together: enough for matrix products to be at their best, few
# enough for their logits to have room.
_STATES = 512


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


@register_pytree
@dataclasses.dataclass(frozen=True)
class Prefix:
  """Tokens that rows have said already, and how; 0 and -1 behind them.

  Attributes:
    lengths: int32 [B], 0..T-1 tokens, none of which ended its row.
    tokens: int32 [B, T].
    exit_layers: int32 [B, T], 1..L.
    confidences: float32 [B, T], as in `DecodeResult`.
    rejected_confidences: float32 [B, T], likewise.
  """

  lengths: Array
  tokens: Array
  exit_layers: Array
  confidences: Array
  rejected_confidences: Array


def trace(state: DecodeState, tokens: Array, lengths: Array) -> Trace:
  """Returns what every exit says while the full model is given its tokens.

  A layer's readout is looked at where the exit rule looks, and at the last one.

  Args:
    state: a decode that has just been started, whose exit rule has a measure
      and whose readout reads all of the vocabulary.
    tokens: int32 [B, T], the outputs.
    lengths: int32 [B], how many of them count.
  """
  tokens = jnp.asarray(tokens, jnp.int32)
  lengths = jnp.asarray(lengths, jnp.int32)
  rows = state.carry.cache, tokens, lengths
  return _trace(rows, state.bound, state.policy)


def resume(state: DecodeState, prefix: Prefix) -> DecodeState:
  """Returns a decode whose rows go on behind tokens that they have said.

  All layers of these are run and their K/V written, many positions at once, and
  the states of their exits are read for their scores.

  Args:
    state: a decode that has just been started, with `CatchUp`; its carry is
      donated.
    prefix: the tokens, as a decode under this policy says them.

  Raises:
    ValueError: for another cache fill, or a decode with more than a row per
      input, forced tokens or drafts.
  """
  fill, carry = state.policy.cache_fill, state.carry
  if not isinstance(fill, CatchUp):
    raise ValueError(
      'the K/V before a token are those of the full model under CatchUp alone, '
      f'and the policy has {type(fill).__name__}; decode from the beginning'
    )
  if (
    isinstance(state.sampler, Search)
    or state.rows_per_request > 1
    or carry.forced is not None
    or carry.drafts is not None
  ):
    raise ValueError(
      'a decode with samples, beams, forced tokens or drafts begins at the '
      'beginning; leave them out'
    )
  prefix = jax.tree.map(jnp.asarray, prefix)
  carry = _resume(carry, prefix, state.bound, state.policy)
  return dataclasses.replace(state, carry=carry)


@jax.jit
def _trace(rows: tuple, bound: BoundDecoder, policy: ComputePolicy) -> Trace:
  return sharding.map_rows(_trace_rows, bound.mesh)(rows, bound, policy)


@functools.partial(jax.jit, donate_argnames=('carry',))
def _resume(
  carry: Carry, prefix: Prefix, bound: BoundDecoder, policy: ComputePolicy
) -> Carry:
  resume_rows = sharding.map_rows(_resume_rows, bound.mesh)
  return resume_rows((carry, prefix), bound, policy)


def _trace_rows(rows, bound, policy) -> Trace:
  """The trace of all rows, or those of one part of a mesh."""
  cache, tokens, lengths = rows
  shape = (*tokens.shape, bound.num_layers)
  numbers = jnp.zeros(shape, jnp.float32)
  nothing = Trace(numbers, jnp.zeros(shape, jnp.int32), numbers, numbers)

  def look(layer, positions, entering, leaving):
    return _look(bound, policy, layer, positions, entering, leaving)

  def by_position(seen, start):
    del start
    return jax.tree.map(lambda values: jnp.moveaxis(values, 0, -1), seen)

  _, found = _run_blocks(
    bound, tokens, lengths, cache, look, by_position, nothing
  )
  return found


def _resume_rows(rows, bound, policy) -> Carry:
  """The carry behind a prefix, of all rows or those of one part of a mesh."""
  carry, prefix = rows
  lengths, tokens = prefix.lengths, prefix.tokens

  def state_of(layer, positions, entering, leaving):
    del layer, positions, entering
    return leaving

  def read_exits(states, start):
    shape = states.shape[1:3]
    exits, said = (
      lax.dynamic_slice_in_dim(array, start, shape[1], axis=1)
      for array in (prefix.exit_layers, tokens)
    )
    exits = jnp.maximum(exits - 1, 0)[None, :, :, None]
    states = jnp.take_along_axis(states, exits, axis=0)[0]
    logits = _read(bound, policy, bound.num_layers - 1, states)
    logits = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logits, said.reshape(-1, 1), axis=1).reshape(
      shape
    )

  cache, log_probabilities = _run_blocks(
    bound,
    tokens,
    lengths,
    carry.cache,
    state_of,
    read_exits,
    jnp.zeros(tokens.shape, jnp.float32),
  )
  is_said = jnp.arange(tokens.shape[1]) < lengths[:, None]
  before = jnp.maximum(lengths - 1, 0)[:, None]
  previous = jnp.take_along_axis(tokens, before, axis=1)[:, 0]
  reached = policy.cache_fill.ran_all(carry.policy.cache_fill, lengths)
  return dataclasses.replace(
    carry,
    cache=cache,
    policy=dataclasses.replace(carry.policy, cache_fill=reached),
    positions=lengths,
    previous_tokens=jnp.where(lengths > 0, previous, 0),
    tokens=tokens,
    exit_layers=prefix.exit_layers,
    confidences=prefix.confidences,
    rejected_confidences=prefix.rejected_confidences,
    scores=jnp.where(is_said, log_probabilities, 0.0).sum(axis=1),
  )


def _run_blocks(
  bound: BoundDecoder,
  tokens: Array,
  lengths: Array,
  cache: PyTree,
  look: Callable[..., PyTree],
  keep: Callable[..., PyTree],
  found: PyTree,
) -> tuple[PyTree, PyTree]:
  """Runs all layers of the first positions of every row, block after block.

  Args:
    bound: the decoder with its parameters.
    tokens: int32 [B, T], what is said there.
    lengths: int32 [B], how many positions of a row are run.
    cache: where their K/V are written.
    look: from a layer, positions [P], states [B, P, D] that enter it and that
      leave it to what is seen there, [B, P, ...].
    keep: from what is seen in all layers, [L, B, P, ...], and the first of the
      positions to what is kept of it, [B, P, ...].
    found: arrays [B, T, ...] to keep that in.

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
        array, block, start, axis=1
      ),
      found,
      keep(seen, start),
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

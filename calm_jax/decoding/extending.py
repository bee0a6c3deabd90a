"""Goes on behind what rows have said, with all layers of every token.

What a threshold says behind a token that the full model did not say; the full
model itself, behind nothing. Every exit of the new tokens is looked at, so that
what is seen is known for any threshold.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import sharding
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import exit_traces
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.states import DecodeState
from calm_jax.interfaces import BoundDecoder
from calm_jax.pytrees import register_pytree

# Once so few of a batch go on, they do so by themselves.
_FEW = 4


@register_pytree
@dataclasses.dataclass(frozen=True)
class _Rows:
  """Rows under way.

  Attributes:
    tokens: int32 [B, T], what they have said, 0 behind it.
    positions: int32 [B], how many tokens that is.
    alive: bool [B], rows that have not ended.
    thresholds: float32 [B, T].
    found: what exits said of the new tokens, [B, T, L].
    cache: their K/V.
  """

  tokens: Array
  positions: Array
  alive: Array
  thresholds: Array
  found: exit_traces.Trace
  cache: PyTree


def extend(
  state: DecodeState, tokens: Array, lengths: Array, thresholds: Array
) -> tuple[Array, Array, exit_traces.Trace]:
  """Decodes rows from behind tokens that they have said, greedily.

  Every token runs all layers, and is that of the first exit whose confidence
  reaches the threshold.

  Args:
    state: as for `trace`.
    tokens: int32 [B, T], what the rows have said, 0 behind it.
    lengths: int32 [B], 0..T, how many tokens that is; none of them ended its
      row. Nothing is done to rows of T tokens.
    thresholds: float32 [T] or [B, T], of every position.

  Returns:
    Tokens [B, T] and lengths [B] once every row has ended, and what the exits
    of the new tokens say; 0 at those that were given.

  Raises:
    ValueError: as `exit_traces.trace`.
  """
  exit_traces.check_followed(state)
  tokens, lengths = exit_traces.whole(tokens, lengths)
  thresholds = jnp.broadcast_to(
    jnp.asarray(thresholds, jnp.float32), tokens.shape
  )
  rows = state.carry.cache, tokens, lengths, thresholds
  return _extend(rows, state.bound, state.policy, eos_id=state.eos_id)


@functools.partial(jax.jit, static_argnames=('eos_id',))
def _extend(rows, bound, policy, *, eos_id):
  extend_rows = functools.partial(_extend_rows, eos_id=eos_id)
  return sharding.map_rows(extend_rows, bound.mesh)(rows, bound, policy)


def _extend_rows(rows, bound, policy, *, eos_id):
  """Extends all rows, or those of one part of a mesh."""
  cache, tokens, lengths, thresholds = rows
  batch_size, max_length = tokens.shape
  alive = lengths < max_length
  cache, _ = exit_traces.run_blocks(
    bound, tokens, jnp.where(alive, lengths, 0), cache, lambda *_: None, None
  )
  rows = _Rows(
    tokens=tokens,
    positions=lengths,
    alive=alive,
    thresholds=thresholds,
    found=exit_traces.nothing(tokens.shape, bound.num_layers),
    cache=cache,
  )
  decode_token = functools.partial(
    _decode_token, bound=bound, policy=policy, eos_id=eos_id
  )
  few = batch_size // _FEW
  rows = lax.while_loop(lambda rows: rows.alive.sum() > few, decode_token, rows)
  if few:
    rows = _finish_few(rows, few, bound, decode_token)
  return rows.tokens, rows.positions, rows.found


def _finish_few(rows: _Rows, few: int, bound: BoundDecoder, decode_token):
  """Decodes the last rows, at most so few, as a batch of their own."""
  chosen = jnp.argsort(~rows.alive, stable=True)[:few]
  cache = bound.take_rows(rows.cache, chosen)
  rows = dataclasses.replace(rows, cache=None)
  part = jax.tree.map(lambda leaf: leaf[chosen], rows)
  part = lax.while_loop(
    lambda part: part.alive.any(),
    decode_token,
    dataclasses.replace(part, cache=cache),
  )
  part = dataclasses.replace(part, cache=None)
  return jax.tree.map(
    lambda leaf, new: leaf.at[chosen].set(new, unique_indices=True), rows, part
  )


def _decode_token(
  rows: _Rows, *, bound: BoundDecoder, policy: ComputePolicy, eos_id: int
) -> _Rows:
  """Decodes the next token of every row that has not ended."""
  batch_size, max_length = rows.tokens.shape
  at = jnp.minimum(rows.positions, max_length - 1)[:, None]
  before = jnp.take_along_axis(rows.tokens, jnp.maximum(at - 1, 0), axis=1)
  hidden = bound.embed(jnp.where(at > 0, before, 0), at)

  def run_layer(carry, layer):
    entering, cache = carry
    cache = bound.fill_layer(layer, entering, at, cache, rows.alive)
    leaving = bound.attend(layer, entering, at, cache)
    leaving = bound.feed_forward(layer, leaving)
    seen = exit_traces.look_at_exit(bound, policy, layer, at, entering, leaving)
    return (leaving, cache), seen

  (_, cache), seen = bound.over_layers(run_layer, (hidden, rows.cache))
  seen = jax.tree.map(lambda values: jnp.moveaxis(values, 0, -1), seen)
  # A confidence that is no number reaches nothing, but at the last layer.
  reached = jnp.nan_to_num(seen.confidences[:, 0], nan=-1.0)
  reached = reached >= jnp.take_along_axis(rows.thresholds, at, axis=1)
  exits = reached.at[:, -1].set(True).argmax(axis=-1)
  said = seen.tokens[jnp.arange(batch_size), 0, exits]
  here = (jnp.arange(max_length) == at) & rows.alive[:, None]
  positions = rows.positions + rows.alive
  return dataclasses.replace(
    rows,
    tokens=jnp.where(here, said[:, None], rows.tokens),
    positions=positions,
    alive=rows.alive & (said != eos_id) & (positions < max_length),
    found=jax.tree.map(
      lambda array, new: jnp.where(here[..., None], new, array),
      rows.found,
      seen,
    ),
    cache=cache,
  )

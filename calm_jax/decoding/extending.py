"""Goes on behind what rows have said, with all layers of every token.

What a threshold says behind a token that the full model did not say. Every exit
of the new tokens is looked at, so that what is seen is known for any threshold.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import sharding
from calm_jax.array_types import Array
from calm_jax.decoding import exit_traces
from calm_jax.decoding.states import DecodeState


def extend(
  state: DecodeState, tokens: Array, lengths: Array, thresholds: Array
) -> tuple[Array, Array, exit_traces.Trace]:
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
    ValueError: as `exit_traces.trace`.
  """
  exit_traces.check_followed(state)
  rows = state.carry.cache, *exit_traces.whole(tokens, lengths)
  thresholds = jnp.asarray(thresholds, jnp.float32)
  return _extend(
    rows, state.bound, state.policy, thresholds, eos_id=state.eos_id
  )


@functools.partial(jax.jit, static_argnames=('eos_id',))
def _extend(rows, bound, policy, thresholds, *, eos_id):
  extend_rows = functools.partial(_extend_rows, eos_id=eos_id)
  return sharding.map_rows(extend_rows, bound.mesh)(
    rows, bound, policy, thresholds
  )


def _extend_rows(rows, bound, policy, thresholds, *, eos_id):
  """Extends all rows, or those of one part of a mesh."""
  cache, tokens, lengths = rows
  batch_size, max_length = tokens.shape
  cache, _ = exit_traces.run_blocks(
    bound, tokens, lengths, cache, lambda *_: None, None
  )
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
      seen = exit_traces.look_at_exit(
        bound, policy, layer, at, entering, leaving
      )
      return (leaving, cache), seen

    (_, cache), seen = bound.over_layers(run_layer, (hidden, cache))
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
    exit_traces.nothing(tokens.shape, bound.num_layers),
  )
  tokens, lengths, _, _, found = lax.while_loop(unfinished, decode_token, carry)
  return tokens, lengths, found

"""Forced prefixes: outputs that begin with given tokens, at full depth.

While tokens are forced, `FullDepthPrefix`, a wrapper of the `exit_rule` slot,
does not ask the rule inside, and `force` leaves a single token to choose from,
so that its log-probability is 0 for samplers and searches alike.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import (
  ExitRule,
  LayeredDecoder,
  LayerView,
  Reading,
  reads_source,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class FullDepthPrefix:
  """Never fires in a forced prefix; behind it, fires as another rule does.

  The other rule is not asked there: confidences are NaN and its state stays.

  Attributes:
    exit_rule: the other rule.
    prefix_lengths: int32 [B], tokens that are forced.
  """

  exit_rule: ExitRule
  prefix_lengths: Array

  @property
  def needs_logits(self) -> bool:
    """Whether the other rule needs logits."""
    return self.exit_rule.needs_logits

  @property
  def reads_source(self) -> bool:
    """Whether the other rule sees the encoded source."""
    return reads_source(self.exit_rule)

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with the other rule checked."""
    rule = self.exit_rule.check(decoder, batch_size, max_length)
    return dataclasses.replace(self, exit_rule=rule)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> tuple[Array, PyTree]:
    """Returns the prefix length of each row and the other rule's state."""
    state = self.exit_rule.init(decoder, batch_size, max_length)
    return self.prefix_lengths, state

  def see_source(
    self, state: tuple[Array, PyTree], pooled: Array, lengths: Array
  ) -> tuple[Array, PyTree]:
    """Returns the state once the other rule has seen the sources."""
    prefix_lengths, inner = state
    rule: Any = self.exit_rule
    return prefix_lengths, rule.see_source(inner, pooled, lengths)

  def looks(self, layer: Array | int) -> Array | bool:
    """Returns whether the other rule looks at this layer."""
    return self.exit_rule.looks(layer)

  def step(
    self, state: tuple[Array, PyTree], view: LayerView
  ) -> tuple[tuple[Array, PyTree], Array, Array]:
    """Stops rows behind their prefix that the other rule stops."""
    prefix_lengths, old = state
    is_forced = view.positions < prefix_lengths
    view = dataclasses.replace(view, active=view.active & ~is_forced)
    new, stops, confidence = self.exit_rule.step(old, view)

    def keep(old, new):
      where = is_forced.reshape((-1,) + (1,) * (new.ndim - 1))
      return jnp.where(where, old, new)

    state = prefix_lengths, jax.tree.map(keep, old, new)
    return state, stops & ~is_forced, jnp.where(is_forced, jnp.nan, confidence)


def force(reading: Reading, forced: Array) -> Reading:
  """Returns a reading in which a forced token is the only one.

  Args:
    reading: of R rows.
    forced: int32 [R], the token of each row, or 0 where it may choose.
  """
  logits, token_ids, log_total = reading
  is_forced = (forced != 0)[:, None]
  places = jnp.arange(logits.shape[1])
  wanted = forced[:, None]
  if token_ids is not None:
    # The token need not be a candidate, so it takes the place of the first one.
    is_first = places == 0
    token_ids = jnp.where(is_forced & is_first, wanted, token_ids)
    wanted = 0
  only = jnp.where(places == wanted, 0.0, -jnp.inf)
  if log_total is not None:
    log_total = jnp.where(is_forced[:, 0], 0.0, log_total)
  return Reading(jnp.where(is_forced, only, logits), token_ids, log_total)


def checked_prefix(
  forced_prefix: Array,
  *,
  batch_size: int,
  max_length: int,
  vocab_size: int,
  eos_id: int,
) -> Array:
  """Returns a forced prefix as int32 [B, T], 0 behind the tokens of a row.

  Raises:
    ValueError: naming what cannot be forced.
  """
  shape = jnp.shape(forced_prefix)
  if len(shape) != 2 or shape[0] != batch_size:
    raise ValueError(
      f'forced_prefix has shape {list(shape)}; give one row of token ids for '
      f'each of the {batch_size} inputs, [B, P], with 0 behind shorter ones'
    )
  forced_prefix = checks.checked_array(
    forced_prefix,
    'forced_prefix token',
    shapes=(shape,),
    low=0,
    high=vocab_size - 1,
    dtype=jnp.int32,
    remedy="use this model's tokenizer",
  )
  if checks.is_concrete(forced_prefix):
    tokens = np.asarray(forced_prefix)
    _check_prefix_tokens(tokens, max_length, eos_id)
    forced_prefix = forced_prefix[:, :max_length]
  elif shape[1] > max_length:
    raise ValueError(
      f'forced_prefix has shape {list(shape)}, wider than max_length '
      f'{max_length}; give a narrower one or a larger max_length'
    )
  missing = max_length - forced_prefix.shape[1]
  forced_prefix = jnp.pad(forced_prefix, ((0, 0), (0, missing)))
  # Of a traced one too, nothing behind a 0 is forced.
  return forced_prefix * jnp.cumprod(forced_prefix != 0, axis=1)


def _check_prefix_tokens(tokens: np.ndarray, max_length: int, eos_id: int):
  """Raises ValueError for a prefix that ends, has a gap or is too long."""
  is_forced = tokens != 0
  if (bad := is_forced & ~np.logical_and.accumulate(is_forced, 1)).any():
    row, column = np.argwhere(bad)[0]
    raise ValueError(
      f'row {row} of forced_prefix has token {tokens[row, column]} behind a 0, '
      'which ends a prefix; put the tokens first'
    )
  if (bad := is_forced & (tokens == eos_id)).any():
    raise ValueError(
      f'row {np.argwhere(bad)[0][0]} of forced_prefix holds eos_id {eos_id}, '
      'which would end the output; leave it out'
    )
  lengths = is_forced.sum(axis=1)
  if (bad := lengths > max_length).any():
    row = np.flatnonzero(bad)[0]
    raise ValueError(
      f'row {row} of forced_prefix has {lengths[row]} tokens, more than '
      f'max_length {max_length}, which counts them; shorten it or give a '
      'larger max_length'
    )

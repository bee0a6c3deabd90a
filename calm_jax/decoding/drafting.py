"""The token step of `VerifyEvery`: drafts, and full-depth tokens to check them.

A row appends the tokens of its early exits as drafts. Whenever a position of
the row runs all layers (because a check is due, or because the exit rule went
on that far), the drafts before it have run them too, as its companions. The
full model's tokens at all of these positions are then chosen by the sampler
itself, with the noise that belongs to each position: what comes out, greedy or
sampled, is to the token what the full model gives with the same key.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array
from calm_jax.decoding import companions as company
from calm_jax.decoding import forced_prefix as prefixes
from calm_jax.decoding import sampling
from calm_jax.decoding.catch_up import CatchUp
from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.decoding.layer_steps import Layers
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Sampler
from calm_jax.decoding.states import Carry, Drafts
from calm_jax.decoding.token_steps import reading_of, run_layers
from calm_jax.interfaces import BoundDecoder
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class _Checked:
  """What a check says of the positions of each row that it looked at.

  Attributes:
    last: int32 [B], the last position that is kept: of the first draft that is
      replaced, of EOS, or the present one.
    token: int32 [B], the full model's token there.
    gain: float32 [B], log-probabilities of the tokens from the first draft to
      there; NaN where logits were none.
    accepted: int32 [B], drafts that agree.
  """

  last: Array
  token: Array
  gain: Array
  accepted: Array


def draft_and_verify(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  sampler: Sampler,
  *,
  walk: tuple[int, ...],
  eos_id: int,
  num_samples: int,
) -> Carry:
  """Appends a draft to every row, or checks those it has; see `VerifyEvery`."""
  del num_samples
  drafts, alive = carry.drafts, carry.alive
  assert drafts is not None, 'start made them'
  layers, rows, memory = run_layers(
    carry, bound, policy, walk=walk, asked=~drafts.due
  )
  full = alive & (rows.exit_layers == bound.num_layers)
  drafted = alive & ~full
  choose = functools.partial(choose_tokens, sampler, carry)

  def draft(rows):
    rows = layers.read(rows)
    reading = reading_of(carry, layers, rows)
    tokens, _ = choose(reading, layers.positions, jnp.arange(alive.shape[0]))
    return tokens, rows.work, rows.policy.readout

  draft_tokens, work, readout = lax.cond(
    drafted.any(),
    draft,
    lambda rows: (
      jnp.zeros_like(carry.positions),
      rows.work,
      rows.policy.readout,
    ),
    rows,
  )
  rows = dataclasses.replace(
    rows, work=work, policy=dataclasses.replace(rows.policy, readout=readout)
  )
  return check_drafts(
    carry, layers, rows, memory, full, draft_tokens, choose, eos_id=eos_id
  )


def check_drafts(
  carry: Carry,
  layers: Layers,
  rows: Rows,
  memory: Memory,
  full: Array,
  draft_tokens: Array | None,
  choose,
  *,
  eos_id: int,
) -> Carry:
  """Ends a token step: checks the drafts of rows that ran all layers.

  Args:
    carry: the decode before the present positions.
    layers: of the present positions.
    rows: what became of them.
    memory: likewise.
    full: bool [B], rows that ran all layers.
    draft_tokens: int32 [B], what the others append; None if there are none.
    choose: chooses the tokens of readings.
    eos_id: the token that ends a row.
  """
  drafts = carry.drafts
  assert drafts is not None, 'start made them'
  if draft_tokens is None:
    draft_tokens = jnp.zeros_like(carry.positions)
  checked, outputs = _check(
    carry, drafts, layers, rows, memory, full, choose, eos_id=eos_id
  )
  pending = carry.positions - drafts.verified
  work = rows.work.plus(
    checks=full,
    outputs=full * outputs,
    cycles=full & (pending > 0),
    verified=jnp.where(full, pending, 0),
    accepted=jnp.where(full, checked.accepted, 0),
  )
  rows = dataclasses.replace(rows, work=work)
  return _go_on(
    carry.record(rows, memory),
    drafts,
    layers.policy,
    rows,
    full,
    draft_tokens,
    checked,
    num_layers=layers.num_layers,
    eos_id=eos_id,
  )


def choose_tokens(sampler, carry, reading, positions, rows):
  """Chooses tokens of readings [N] at positions [N] of rows [N]."""
  keys = carry.keys
  if keys is not None:
    keys = sampling.draw_keys(keys[rows], positions, carry.samples[rows])
  return sampling.choose(sampler, keys=keys, **reading._asdict())


def _check(
  carry: Carry,
  drafts: Drafts,
  layers: Layers,
  rows: Rows,
  memory: Memory,
  full: Array,
  choose,
  *,
  eos_id: int,
) -> tuple[_Checked, Array]:
  """Chooses the full model's tokens of rows that ran all layers.

  Returns:
    What they say of the drafts, and how many logits were computed for it.
  """
  verified, positions = drafts.verified, layers.positions
  width = min(layers.policy.verification.tokens, carry.tokens.shape[1] - 1) + 1
  start = company.window_start(positions, width)
  block = start[:, None] + jnp.arange(width)
  is_draft = (block >= verified[:, None]) & (block < positions[:, None])
  is_here = block == positions[:, None]

  def tokens_of(size):
    """Returns a function to the tokens of the last `size` positions."""

    def run(_):
      begin = company.window_start(positions, size)
      tokens, log_probabilities = _full_tokens(
        carry, layers, rows, memory, begin, size, choose
      )
      spread = [
        jax.vmap(lax.dynamic_update_slice)(
          jnp.zeros(block.shape, values.dtype), values, (begin - start)[:, None]
        )
        for values in (tokens, log_probabilities)
      ]
      return *spread, jnp.int32(size * layers.bound.vocab_size)

    return run

  def nothing(_):
    zeros = jnp.zeros(block.shape, jnp.float32)
    return zeros.astype(jnp.int32), zeros, jnp.int32(0)

  some = (full & (positions > verified)).any()
  tokens, log_probabilities, outputs = lax.switch(
    full.any() * (1 + some), [nothing, tokens_of(1), tokens_of(width)], None
  )
  drafted = jnp.take_along_axis(carry.tokens, block, axis=1)
  agrees = is_draft & (tokens == drafted)
  ends = is_here | (is_draft & ~agrees) | (agrees & (tokens == eos_id))
  ends |= (is_draft | is_here) & jnp.isnan(log_probabilities)
  place = jnp.argmax(ends, axis=1)
  kept = (is_draft | is_here) & (jnp.arange(width) <= place[:, None])
  at_place = functools.partial(
    jnp.take_along_axis, indices=place[:, None], axis=1
  )
  checked = _Checked(
    last=at_place(block)[:, 0],
    token=at_place(tokens)[:, 0],
    gain=jnp.where(kept, log_probabilities, 0.0).sum(axis=1),
    accepted=(kept & agrees).sum(axis=1),
  )
  return checked, outputs


def _full_tokens(carry, layers, rows, memory, begin, size, choose):
  """Returns tokens and log-probabilities [B, size] after all layers."""
  batch_size = begin.shape[0]
  hidden = company.cut(memory.cache_fill.hidden, begin, size)

  def flat(array):
    return array.reshape(batch_size * size, *array.shape[2:])

  positions = begin[:, None] + jnp.arange(size)
  _, reading = layers.policy.readout.over_all().step(
    rows.policy.readout,
    layers.bound,
    hidden=flat(hidden),
    layer=jnp.full((batch_size * size,), layers.num_layers - 1),
    first=False,
    active=jnp.repeat(carry.alive, size),
  )
  if carry.forced is not None:
    forced = jnp.take_along_axis(carry.forced, positions, axis=1)
    reading = prefixes.force(reading, flat(forced))
  row = jnp.repeat(jnp.arange(batch_size), size)
  chosen = choose(reading, flat(positions), row)
  return [array.reshape(batch_size, size) for array in chosen]


def _go_on(
  carry: Carry,
  drafts: Drafts,
  policy: ComputePolicy,
  rows: Rows,
  full: Array,
  draft_tokens: Array,
  checked: _Checked,
  *,
  num_layers: int,
  eos_id: int,
) -> Carry:
  """Returns the carry with drafts appended, or with what the check left."""
  places = jnp.arange(carry.tokens.shape[1])
  longest = carry.tokens.shape[1]
  positions = carry.positions
  assert isinstance(policy.cache_fill, CatchUp), 'the policy was checked'
  failed = full & jnp.isnan(checked.gain)
  last = jnp.where(full, checked.last, positions)
  token = jnp.where(full, checked.token, draft_tokens)
  token = jnp.where(failed, 0, token)
  here = carry.alive[:, None] & (places == last[:, None])
  dropped = full[:, None] & (places > last[:, None])
  # Written where the check replaced a draft: the full model's own token.
  replaced = (full & (checked.last < positions))[:, None] & here
  replaced &= carry.tokens != token[:, None]
  lengths = jnp.where(carry.alive, last + 1 - failed, positions)
  ended = full & (failed | (token == eos_id) | (lengths >= longest))
  verified = jnp.where(full, lengths, drafts.verified)
  pending = positions - drafts.verified
  state = policy.verification.observe(
    drafts.state,
    full & (pending > 0),
    checked.accepted,
    # Not where an accepted draft of EOS ended the row.
    (checked.last < positions)
    & (checked.accepted <= checked.last - drafts.verified),
  )
  due = policy.verification.due(state, lengths - verified, rows.confidences)
  due = ~full & (due | (token == eos_id))
  # The last position can be nobody's companion.
  due |= lengths >= longest - 1
  alive = carry.alive & ~ended
  fill = policy.cache_fill.keep_first(carry.policy.cache_fill, lengths, full)
  return dataclasses.replace(
    carry,
    policy=dataclasses.replace(carry.policy, cache_fill=fill),
    positions=lengths,
    alive=alive,
    previous_tokens=jnp.where(carry.alive, token, carry.previous_tokens),
    tokens=jnp.where(here, token[:, None], jnp.where(dropped, 0, carry.tokens)),
    exit_layers=jnp.where(
      dropped, -1, jnp.where(replaced, num_layers, carry.exit_layers)
    ),
    confidences=jnp.where(dropped | replaced, jnp.nan, carry.confidences),
    rejected_confidences=jnp.where(
      dropped, -jnp.inf, carry.rejected_confidences
    ),
    scores=carry.scores + jnp.where(full, checked.gain, 0.0),
    drafts=Drafts(verified=verified, due=due & alive, state=state),
  )

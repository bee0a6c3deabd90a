"""The token step of `DraftAhead`: drafts, then a check of them.

One step is a whole round: rows draft, by a head or by first layers, until all
have as many as they may; then every row runs all layers once, and what agrees
stays. So rows of a batch share each pass over the weights, which they would not
if each were checked when its own drafts are due, and the passes between, in
which no layer runs, are no part of the depth loop.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array
from calm_jax.decoding.draft_ahead import DraftAhead
from calm_jax.decoding.drafters import Guess, drafter_of
from calm_jax.decoding.drafting import check_drafts, choose_tokens
from calm_jax.decoding.layer_rows import Memory
from calm_jax.decoding.layer_steps import Layers
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Sampler
from calm_jax.decoding.states import Carry
from calm_jax.decoding.token_steps import reading_of, run_layers
from calm_jax.interfaces import BoundDecoder


def draft_ahead(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  sampler: Sampler,
  *,
  walk: tuple[int, ...],
  eos_id: int,
  num_samples: int,
) -> Carry:
  """Appends drafts to every row, and checks them."""
  del num_samples
  carry = _draft(carry, bound, policy, sampler, eos_id=eos_id)
  layers, rows, memory = run_layers(carry, bound, policy, walk=walk)
  choose = functools.partial(choose_tokens, sampler, carry)
  return check_drafts(
    carry, layers, rows, memory, carry.alive, None, choose, eos_id=eos_id
  )


def _draft(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  sampler: Sampler,
  *,
  eos_id: int,
) -> Carry:
  """Returns the carry with drafts appended, to rows that can have some."""
  assert isinstance(policy.verification, DraftAhead), 'the loop looked'
  assert carry.drafts is not None, 'start made them'
  drafter = drafter_of(policy.verification.head)
  verified, state = carry.drafts.verified, carry.drafts.state
  # The last position can be nobody's companion: nothing is drafted there.
  last = carry.tokens.shape[1] - 1
  states, ready = drafter.first_states(carry)
  going = carry.alive & ready & (carry.positions < last)

  def draft(loop):
    states, carry = loop
    positions = carry.positions
    guess = drafter.guess(bound, states, carry)
    carry, tokens, probabilities = _read(carry, guess, policy, sampler)
    made = carry.alive & ~jnp.isnan(probabilities)
    here = made[:, None] & (jnp.arange(last + 1) == positions[:, None])
    positions = positions + made
    due = policy.verification.due(state, positions - verified, probabilities)
    carry = dataclasses.replace(
      carry,
      tokens=jnp.where(here, tokens[:, None], carry.tokens),
      previous_tokens=jnp.where(made, tokens, carry.previous_tokens),
      positions=positions,
      alive=made & ~due & (tokens != eos_id) & (positions < last),
    )
    return guess.hidden, carry

  # In here, a row is alive for as long as it drafts. A cache that nobody needs
  # stays outside.
  cache = carry.cache if drafter.uses_cache else None
  loop = states, dataclasses.replace(carry, cache=cache, alive=going)
  _, drafted = lax.while_loop(lambda loop: loop[1].alive.any(), draft, loop)
  if not drafter.uses_cache:
    drafted = dataclasses.replace(drafted, cache=carry.cache)
  return dataclasses.replace(drafted, alive=carry.alive)


def _read(
  carry: Carry, guess: Guess, policy: ComputePolicy, sampler: Sampler
) -> tuple[Carry, Array, Array]:
  """Reads one draft of every row that is alive out of the states guessed.

  Returns:
    The carry with how the tokens were computed, the tokens [R] and their
    probabilities [R].
  """
  layers = Layers(
    bound=guess.bound,
    policy=policy,
    positions=carry.positions,
    alive=carry.alive,
  )
  rows = layers.start(guess.hidden[:, None], carry.policy)
  rows = layers.read(
    dataclasses.replace(
      rows,
      # It will have run them all, if it stays.
      exit_layers=jnp.where(carry.alive, layers.num_layers, -1),
      work=rows.work.plus(**guess.work),
    )
  )
  chosen, log_probabilities = choose_tokens(
    sampler,
    carry,
    reading_of(carry, layers, rows),
    carry.positions,
    jnp.arange(carry.alive.shape[0]),
  )
  probabilities = jnp.exp(log_probabilities)
  rows = dataclasses.replace(rows, confidences=probabilities)
  # What enters the first layer, kept for when the position runs it.
  kept = policy.cache_fill.finish(
    carry.policy.cache_fill, guess.entering, carry.positions, carry.alive
  )
  memory = Memory(cache=guess.cache, cache_fill=kept)
  return carry.record(rows, memory), chosen, probabilities

"""The token step of `DraftAhead`: drafts by a head, then a check of them.

One step is a whole round: rows draft, none of them running a layer, until all
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
from calm_jax.decoding import companions as company
from calm_jax.decoding.draft_ahead import DraftAhead
from calm_jax.decoding.drafting import check_drafts, choose_tokens
from calm_jax.decoding.layer_steps import Layers, Memory
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
  eos_id: int,
  num_samples: int,
) -> Carry:
  """Appends drafts of the head to every row, and checks them."""
  del num_samples
  carry = _draft(carry, bound, policy, sampler, eos_id=eos_id)
  layers, rows, memory = run_layers(carry, bound, policy)
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
  """Returns the carry with drafts appended, to rows with a checked token."""
  assert carry.drafts is not None, 'start made them'
  verified, state = carry.drafts.verified, carry.drafts.state
  # The last position can be nobody's companion: nothing is drafted there.
  last = carry.tokens.shape[1] - 1
  states = company.cut(
    carry.policy.cache_fill.hidden, jnp.maximum(verified - 1, 0), 1
  )[:, 0]
  going = carry.alive & (verified > 0) & (carry.positions < last)

  def draft(loop):
    states, carry = loop
    positions = carry.positions
    states, carry, tokens, probabilities = _draft_one(
      states, carry, bound, policy, sampler
    )
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
    return states, carry

  # In here, a row is alive for as long as it drafts. The cache stays outside.
  loop = states, dataclasses.replace(carry, cache=None, alive=going)
  _, drafted = lax.while_loop(lambda loop: loop[1].alive.any(), draft, loop)
  return dataclasses.replace(drafted, cache=carry.cache, alive=carry.alive)


def _draft_one(
  states: Array,
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  sampler: Sampler,
) -> tuple[Array, Carry, Array, Array]:
  """Drafts one token of every row that is alive.

  Returns:
    The states [R, D] at the present positions, the carry with how the tokens
    were computed, the tokens [R] and their probabilities [R].
  """
  assert isinstance(policy.verification, DraftAhead), 'the loop looked'
  head, fill = policy.verification.head, policy.cache_fill
  layers = Layers(
    bound=bound, policy=policy, positions=carry.positions, alive=carry.alive
  )
  # Positions of the last tokens as the decoder reads them, latest first.
  recent = carry.positions[:, None] - jnp.arange(head.num_tokens)
  tokens = jnp.take_along_axis(carry.tokens, jnp.maximum(recent - 1, 0), axis=1)
  tokens = jnp.where(recent > 0, tokens, 0)
  embeddings = bound.embed(tokens, jnp.maximum(recent, 0))
  states = head(states, embeddings).astype(states.dtype)
  rows = layers.start(states[:, None], carry.policy)
  rows = layers.read(
    dataclasses.replace(
      rows,
      # It will have run them all, if it stays.
      exit_layers=jnp.where(carry.alive, bound.num_layers, -1),
      work=rows.work.plus(extra_products=carry.alive * head.products),
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
  kept = fill.finish(
    carry.policy.cache_fill, embeddings[:, :1], carry.positions, carry.alive
  )
  carry = carry.record(rows, Memory(cache=None, cache_fill=kept))
  return states, carry, chosen, probabilities

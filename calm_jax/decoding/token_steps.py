"""Token steps: what the token loop repeats, from carry to carry.

`one_token` decodes a token of every row and appends it; `beam_step` gives rows
to the best continuations; `drafts.draft_and_verify` appends drafts and checks
them now and then. The policy and the sampler say which.
"""

from typing import Protocol

import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.decoding import forced_prefix as prefixes
from calm_jax.decoding import sampling
from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.decoding.layer_steps import Layers
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Sampler
from calm_jax.decoding.states import Carry, Search
from calm_jax.interfaces import BoundDecoder, Reading


class TokenStep(Protocol):
  """Goes on by a token, or some, in every row that is alive."""

  def __call__(
    self,
    carry: Carry,
    bound: BoundDecoder,
    policy: ComputePolicy,
    sampler: Sampler,
    *,
    walk: tuple[int, ...],
    eos_id: int,
    num_samples: int,
  ) -> Carry:
    """Returns the carry after it.

    `walk` are the layers that are in the program, see `Layers`.
    """
    ...


def run_layers(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  *,
  walk: tuple[int, ...],
  asked: Array | None = None,
) -> tuple[Layers, Rows, Memory]:
  """Runs the layers of the present position of every row that is alive.

  Args:
    carry: the decode so far.
    bound: the decoder with its parameters.
    policy: the policy.
    walk: see `Layers`.
    asked: bool [R], see `Layers`.

  Returns:
    The layers, and what became of the rows and of the memory.
  """
  layers = Layers(
    bound=bound,
    policy=policy,
    # Rows that are full stay where they are; nothing of theirs is written.
    positions=jnp.minimum(carry.positions, carry.tokens.shape[1] - 1),
    alive=carry.alive,
    asked=asked,
    walk=walk,
  )
  hidden = bound.embed(
    carry.previous_tokens[:, None], layers.positions[:, None]
  )
  rows, memory = bound.depth_loop(
    layers,
    layers.start(hidden, carry.policy),
    Memory(cache=carry.cache, cache_fill=carry.policy.cache_fill),
  )
  return layers, rows, layers.finish(rows, memory)


def reading_of(carry: Carry, layers: Layers, rows: Rows) -> Reading:
  """Returns what the exit states read as, where tokens are not forced."""
  reading = rows.reading
  assert reading is not None, 'the exit states have been read'
  if carry.forced is None:
    return reading
  forced = carry.forced[jnp.arange(carry.alive.shape[0]), layers.positions]
  return prefixes.force(reading, forced)


def read_token(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  walk: tuple[int, ...],
) -> tuple[Carry, Array, Reading]:
  """Runs the layers of the present position and reads every row's exit state.

  Returns:
    The carry with how the token was computed in it, the positions, int32 [R],
    and what they read as.
  """
  layers, rows, memory = run_layers(carry, bound, policy, walk=walk)
  rows = layers.read(rows)
  reading = reading_of(carry, layers, rows)
  return carry.record(rows, memory), layers.positions, reading


def one_token(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  sampler: Sampler,
  *,
  walk: tuple[int, ...],
  eos_id: int,
  num_samples: int,
) -> Carry:
  """Decodes one token of every row that is alive."""
  del num_samples
  carry, positions, reading = read_token(carry, bound, policy, walk)
  keys = carry.keys
  if keys is not None:
    keys = sampling.draw_keys(keys, positions, carry.samples)
  tokens, log_probabilities = sampling.choose(
    sampler, keys=keys, **reading._asdict()
  )
  scores = carry.scores + jnp.where(carry.alive, log_probabilities, 0.0)
  return carry.append(tokens, scores, eos_id)


def beam_step(
  carry: Carry,
  bound: BoundDecoder,
  policy: ComputePolicy,
  sampler: Sampler,
  *,
  walk: tuple[int, ...],
  eos_id: int,
  num_samples: int,
) -> Carry:
  """Decodes one token of every beam, and goes on with the best ones."""
  assert isinstance(sampler, Search), 'no other sampler has beams'
  carry, _, reading = read_token(carry, bound, policy, walk)
  return sampler.extend(
    carry,
    reading,
    decoder=bound.decoder,
    eos_id=eos_id,
    num_samples=num_samples,
  )

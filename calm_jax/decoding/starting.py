"""How a decode starts: everything is checked, and the encoder runs.

What a `DecodeState` holds before its first token. Checks are made here, on the
host, so that the loops meet numbers that make sense.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from calm_jax import checks, sharding
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import (
  binding,
  constraints,
  mesh_layout,
  sampling,
)
from calm_jax.decoding.encoder_exits import WholeEncoder
from calm_jax.decoding.policy import ComputePolicy, as_policy
from calm_jax.decoding.sampling import Sampler
from calm_jax.decoding.states import Carry, DecodeState, Drafts, Search
from calm_jax.encoding import input_checks
from calm_jax.interfaces import BoundDecoder, EncoderExit, ExitRule, Work

_WHOLE = WholeEncoder()


def start(
  bound: BoundDecoder,
  inputs: ArrayLike,
  *,
  policy: ComputePolicy | ExitRule | None = None,
  sampler: Sampler | None = None,
  max_length: int,
  eos_id: int = 1,
  rng: Array | None = None,
  num_samples: int | None = None,
  forced_prefix: Array | None = None,
  suppressed_tokens: Sequence[int] | Array | None = None,
) -> DecodeState:
  """Checks everything, runs the encoder and returns a decode to advance.

  The arguments are those of `generate`.
  """
  binding.check_bound(bound)
  decoder = bound.decoder
  policy = as_policy(policy)
  policy.check_composition()
  sampler = sampling.as_sampler(sampler)
  inputs = input_checks.check_inputs(inputs, decoder.vocab_size)
  checks.check_whole(max_length, 'max_length', low=1)
  if num_samples is not None:
    checks.check_whole(num_samples, 'num_samples', low=1)
  checks.check_whole(eos_id, 'eos_id', low=-1, high=decoder.vocab_size - 1)
  batch_size = inputs.shape[0]
  policy, forced = constraints.constrain(
    policy,
    forced_prefix,
    suppressed_tokens,
    batch_size=batch_size,
    max_length=max_length,
    vocab_size=decoder.vocab_size,
    eos_id=eos_id,
  )
  policy = policy.check(decoder, batch_size, max_length)
  wanted, sampler = sampler, sampler.check(decoder.vocab_size)
  num_rows = num_samples or 1
  if isinstance(sampler, Search) and policy.verifies:
    raise ValueError(
      f'{type(sampler).__name__} reorders rows at every token, and drafts of '
      f'{type(policy.verification).__name__} are checked together; use a '
      'sampler, or decoding.NeverVerify()'
    )
  if isinstance(wanted, Search):
    num_rows = wanted.num_rows(num_rows)
  keys = None
  if not sampler.deterministic:
    if rng is None:
      raise ValueError(
        f'{type(sampler).__name__} draws tokens at random and needs a key; '
        'pass rng=jax.random.key(seed)'
      )
    keys = sampling.request_keys(rng, batch_size)
  inputs, policy, sampler = mesh_layout.place(
    bound.mesh, inputs, policy, sampler
  )
  sizes = dict(max_length=max_length, num_rows=num_rows)
  layers = layers_that_run(policy, decoder.num_layers, max_length)
  cache, source, encoder_exit_layers = encode(
    bound,
    inputs,
    policy.source_plan,
    policy.encoder_exit,
    layers=layers,
    pooled=policy.reads_source,
    max_length=policy.layer_plan.room(max_length),
    num_rows=num_rows,
  )
  carry = _first_carry(
    cache,
    policy,
    sampler,
    (source, encoder_exit_layers, keys, forced),
    decoder=decoder,
    batch_size=batch_size,
    mesh=bound.mesh,
    **sizes,
  )
  return DecodeState(
    bound=bound,
    policy=policy,
    sampler=sampler,
    carry=carry,
    eos_id=eos_id,
    num_samples=num_samples,
  )


def layers_that_run(
  policy: ComputePolicy, num_layers: int, max_length: int
) -> tuple[int, ...] | None:
  """Returns the layers that a decode of T positions runs; None for all."""
  segments = policy.layer_plan.segments(num_layers, max_length)
  layers = frozenset().union(*(segment.layers for segment in segments))
  return None if len(layers) == num_layers else tuple(sorted(layers))


@functools.partial(
  jax.jit, static_argnames=('max_length', 'num_rows', 'layers', 'pooled')
)
def encode(
  bound,
  inputs,
  plan,
  encoder_exit=_WHOLE,
  *,
  max_length,
  num_rows,
  layers=None,
  pooled=False,
) -> tuple[PyTree, tuple[Array, Array] | None, Array | None]:
  """Runs the encoder: the cache of all rows, so many per request.

  If wanted also sources pooled [B, D] and their lengths [B], one per request:
  whole ones, whatever of them is read later. Where sources may leave the
  encoder early, also the encoder layers of each request, int32 [B].

  Args:
    bound: the decoder with its parameters.
    inputs: int [B, S].
    plan: the source plan, checked.
    encoder_exit: how much of the encoder runs, checked.
    max_length: T, or the positions that there is room for.
    num_rows: rows per request.
    layers: those that ever run; None for all.
    pooled: whether sources are wanted.
  """

  def encode_rows(of_rows, bound, plan, encoder_exit):
    inputs, state = of_rows
    encoded, exit_layers = encode_sources(bound, inputs, encoder_exit, state)
    source = bound.pool_source(encoded) if pooled else None
    if not plan.whole:
      encoded = bound.select_source(encoded, *plan.select(bound, encoded))
    cache = bound.start(encoded, max_length, layers)
    if num_rows == 1:
      return cache, source, exit_layers
    rows = jnp.repeat(jnp.arange(inputs.shape[0]), num_rows)
    return bound.take_rows(cache, rows), source, exit_layers

  of_rows = (inputs, encoder_exit.init(bound.decoder, inputs.shape[0], 1))
  return sharding.map_rows(encode_rows, bound.mesh)(
    of_rows, bound, plan, encoder_exit
  )


def encode_sources(
  bound: BoundDecoder, inputs: Array, encoder_exit: EncoderExit, state: PyTree
) -> tuple[PyTree, Array | None]:
  """Returns encoded sources, and their encoder layers where they may differ.

  Args:
    bound: the decoder with its parameters.
    inputs: int32 [B, S].
    encoder_exit: how much of the encoder runs, checked.
    state: of its `init`.
  """
  if encoder_exit.whole:
    return bound.encode(inputs), None
  return encoder_exit.encode(state, bound, inputs)


@functools.partial(
  jax.jit,
  static_argnames=('decoder', 'batch_size', 'max_length', 'num_rows', 'mesh'),
  donate_argnames=('cache',),
)
def _first_carry(
  cache,
  policy,
  sampler,
  of_requests,
  *,
  decoder,
  batch_size,
  max_length,
  num_rows,
  mesh,
) -> Carry:
  """Returns the carry before the first token, `num_rows` rows per request."""
  source, encoder_exit_layers, keys, forced = of_requests
  state = policy.init(decoder, batch_size, max_length)
  if source is not None:
    state = policy.see_source(state, *source)
  # `repeat` also makes copies: a state that were the policy's own array would
  # be donated together with the carry.
  policy_state, encoder_exit_layers, keys, forced = jax.tree.map(
    lambda leaf: jnp.copy(jnp.repeat(leaf, num_rows, axis=0)),
    (state, encoder_exit_layers, keys, forced),
  )
  size = batch_size * num_rows
  shape = (size, max_length)
  carry = Carry(
    cache=cache,
    policy=policy_state,
    positions=jnp.zeros((size,), jnp.int32),
    alive=jnp.ones((size,), bool),
    previous_tokens=jnp.zeros((size,), jnp.int32),
    tokens=jnp.zeros(shape, jnp.int32),
    exit_layers=jnp.full(shape, -1, jnp.int32),
    confidences=jnp.full(shape, jnp.nan, jnp.float32),
    rejected_confidences=jnp.full(shape, -jnp.inf, jnp.float32),
    work=Work.none(shape),
    scores=jnp.zeros((size,), jnp.float32),
    keys=keys,
    samples=jnp.tile(jnp.arange(num_rows, dtype=jnp.int32), batch_size),
    forced=forced,
    encoder_exit_layers=encoder_exit_layers,
  )
  if policy.verifies:
    # The last position can be nobody's companion: it runs all layers.
    due = jnp.full((size,), max_length == 1)
    drafts = Drafts(
      verified=jnp.zeros((size,), jnp.int32),
      due=due,
      state=policy.verification.init(decoder, size, max_length),
    )
    carry = dataclasses.replace(carry, drafts=drafts)
  if isinstance(sampler, Search):
    carry = sampler.start(carry)
  return mesh_layout.share_carry(carry, mesh)

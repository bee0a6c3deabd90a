"""How a decode starts: everything is checked, and the encoder runs.

What a `DecodeState` holds before its first token. Checks are made here, on the
host, so that the loops meet numbers that make sense.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from calm_jax import checks, sharding
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import (
  constraints,
  input_checks,
  mesh_layout,
  sampling,
)
from calm_jax.decoding.depth_loops import UnrolledDepthLoop, WhileDepthLoop
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Greedy, Sampler
from calm_jax.decoding.states import Carry, DecodeState, Search
from calm_jax.interfaces import DepthLoop, LayeredDecoder


def start(
  decoder: LayeredDecoder,
  params: PyTree,
  inputs: Array,
  *,
  policy: ComputePolicy | None = None,
  sampler: Sampler | None = None,
  max_length: int,
  eos_id: int = 1,
  rng: Array | None = None,
  num_samples: int = 1,
  forced_prefix: Array | None = None,
  suppressed_tokens: Sequence[int] | Array | None = None,
  depth_loop: DepthLoop | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> DecodeState:
  """Checks everything, runs the encoder and returns a decode to advance.

  The arguments are those of `generate`.
  """
  policy = ComputePolicy() if policy is None else policy
  sampler = Greedy() if sampler is None else sampler
  if depth_loop is None:
    depth_loop = default_depth_loop(params)
  inputs = input_checks.check_inputs(inputs, decoder.vocab_size)
  checks.check_whole(max_length, 'max_length', low=1)
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
  num_rows = num_samples
  if isinstance(wanted, Search):
    num_rows = wanted.num_rows(num_samples)
  keys = None
  if not sampler.deterministic:
    if rng is None:
      raise ValueError(
        f'{type(sampler).__name__} draws tokens at random and needs a key; '
        'pass rng=jax.random.key(seed)'
      )
    keys = sampling.request_keys(rng, batch_size)
  params = decoder.prepare(params, traced_layers=depth_loop.traced_layers)
  inputs, params, policy, sampler = mesh_layout.place(
    mesh, inputs, params, policy, sampler
  )
  sizes = dict(
    decoder=decoder, max_length=max_length, num_rows=num_rows, mesh=mesh
  )
  cache = encode(params, inputs, **sizes)
  carry = _first_carry(
    cache, policy, sampler, keys, forced, batch_size=batch_size, **sizes
  )
  return DecodeState(
    params=params,
    policy=policy,
    sampler=sampler,
    carry=carry,
    decoder=decoder,
    depth_loop=depth_loop,
    eos_id=eos_id,
    num_samples=num_samples,
    mesh=mesh,
  )


def default_depth_loop(params: PyTree = None) -> DepthLoop:
  """Returns the depth loop for prepared parameters, or for this backend.

  On CPU indexing stacked weights copies each layer's weights at every step, so
  it is the unrolled loop; elsewhere the reference.

  Args:
    params: prepared parameters decide by their layout; anything else does not.
  """
  traced_layers = getattr(params, 'traced_layers', None)
  if traced_layers is None:
    traced_layers = jax.default_backend() != 'cpu'
  return WhileDepthLoop() if traced_layers else UnrolledDepthLoop()


@functools.partial(
  jax.jit, static_argnames=('decoder', 'max_length', 'num_rows', 'mesh')
)
def encode(params, inputs, *, decoder, max_length, num_rows, mesh) -> PyTree:
  """Runs the encoder and returns the cache of all rows, so many per request."""

  def encode_rows(inputs, params):
    encoded = decoder.encode(params, inputs)
    cache = decoder.start(params, encoded, max_length)
    if num_rows == 1:
      return cache
    rows = jnp.repeat(jnp.arange(inputs.shape[0]), num_rows)
    return decoder.take_rows(cache, rows)

  return sharding.map_rows(encode_rows, mesh)(inputs, params)


@functools.partial(
  jax.jit,
  static_argnames=('decoder', 'batch_size', 'max_length', 'num_rows', 'mesh'),
  donate_argnames=('cache',),
)
def _first_carry(
  cache,
  policy,
  sampler,
  keys,
  forced,
  *,
  decoder,
  batch_size,
  max_length,
  num_rows,
  mesh,
) -> Carry:
  """Returns the carry before the first token, `num_rows` rows per request."""
  # `repeat` also makes copies: a state that were the policy's own array would
  # be donated together with the carry.
  policy_state, keys, forced = jax.tree.map(
    lambda leaf: jnp.copy(jnp.repeat(leaf, num_rows, axis=0)),
    (policy.init(decoder, batch_size, max_length), keys, forced),
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
    scores=jnp.zeros((size,), jnp.float32),
    keys=keys,
    samples=jnp.tile(jnp.arange(num_rows, dtype=jnp.int32), batch_size),
    forced=forced,
  )
  if isinstance(sampler, Search):
    carry = sampler.start(carry)
  return mesh_layout.share_carry(carry, mesh)

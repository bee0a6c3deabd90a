"""The token loop: `generate`, and `start`, `advance`, `finish` that make it up.

Each row has its own position, so rows may be at different places of their
outputs. `advance` is one compiled `lax.while_loop` over tokens; what it carries
is one `Carry`, donated from call to call, while the numbers of policies and
samplers and the number of steps are traced, so that changing them compiles
nothing. All of it also runs inside another jitted program.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import input_checks, sampling
from calm_jax.decoding.depth_loops import UnrolledDepthLoop, WhileDepthLoop
from calm_jax.decoding.layer_steps import Layers, Memory
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Greedy, Sampler
from calm_jax.decoding.states import Carry, DecodeResult, DecodeState
from calm_jax.exits import checks
from calm_jax.interfaces import DepthLoop, LayeredDecoder


def generate(
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
  depth_loop: DepthLoop | None = None,
) -> DecodeResult:
  """Decodes inputs, stopping the layers of each token where the policy says.

  Args:
    decoder: the model, taken apart.
    params: its parameters; pass `decoder.prepare(params, ...)` when decoding
      many batches, or they are laid out anew for each.
    inputs: int [B, S] source tokens, 0 = padding.
    policy: what is computed for each token; the full model by default.
    sampler: how tokens are chosen; `Greedy()` by default.
    max_length: T, the most tokens of an output, EOS included.
    eos_id: the token that ends a row; -1 if none does.
    rng: for samplers that draw: one key, or [B] keys, one per request.
    num_samples: outputs per input; the encoder runs once for all.
    depth_loop: how layers are looped over; `default_depth_loop()` if None.

  Raises:
    ValueError: naming the bad value, if something cannot be decoded.
  """
  state = start(
    decoder,
    params,
    inputs,
    policy=policy,
    sampler=sampler,
    max_length=max_length,
    eos_id=eos_id,
    rng=rng,
    num_samples=num_samples,
    depth_loop=depth_loop,
  )
  return finish(advance(state))


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
  depth_loop: DepthLoop | None = None,
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
  policy = policy.check(decoder, batch_size, max_length)
  sampler = sampler.check(decoder.vocab_size)
  keys = None
  if not sampler.deterministic:
    if rng is None:
      raise ValueError(
        f'{type(sampler).__name__} draws tokens at random and needs a key; '
        'pass rng=jax.random.key(seed)'
      )
    keys = sampling.request_keys(rng, batch_size)
  params = decoder.prepare(params, traced_layers=depth_loop.traced_layers)
  sizes = dict(decoder=decoder, max_length=max_length, num_samples=num_samples)
  cache = _encode(params, inputs, **sizes)
  carry = _first_carry(cache, policy, keys, batch_size=batch_size, **sizes)
  return DecodeState(
    params=params,
    policy=policy,
    sampler=sampler,
    carry=carry,
    decoder=decoder,
    depth_loop=depth_loop,
    eos_id=eos_id,
    num_samples=num_samples,
  )


def advance(
  state: DecodeState, steps: int | Array | None = None
) -> DecodeState:
  """Decodes up to `steps` more tokens of every row; all of them if None.

  The carry of `state` is donated: use the returned state from here on.
  """
  if steps is None:
    steps = state.carry.tokens.shape[1]
  elif not hasattr(steps, 'dtype'):
    checks.check_whole(steps, 'steps', low=0)
  carry = _advance(
    state.carry,
    state.params,
    state.policy,
    state.sampler,
    jnp.asarray(steps, jnp.int32),
    decoder=state.decoder,
    depth_loop=state.depth_loop,
    eos_id=state.eos_id,
  )
  return dataclasses.replace(state, carry=carry)


def finish(state: DecodeState) -> DecodeResult:
  """Returns what has been decoded so far; `state` may be advanced further."""
  carry = state.carry

  def per_request(array):
    if state.num_samples > 1:
      return array.reshape(-1, state.num_samples, *array.shape[1:])
    # A copy, because advancing the state would take the carry's buffers.
    return jnp.copy(array)

  return DecodeResult(
    tokens=per_request(carry.tokens),
    exit_layers=per_request(carry.exit_layers),
    confidences=per_request(carry.confidences),
    rejected_confidences=per_request(carry.rejected_confidences),
    scores=per_request(carry.scores),
    lengths=per_request(carry.positions),
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
  jax.jit, static_argnames=('decoder', 'max_length', 'num_samples')
)
def _encode(params, inputs, *, decoder, max_length, num_samples) -> PyTree:
  """Runs the encoder and returns the cache of all rows."""
  encoded = decoder.encode(params, inputs)
  cache = decoder.start(params, encoded, max_length)
  if num_samples == 1:
    return cache
  rows = jnp.repeat(jnp.arange(inputs.shape[0]), num_samples)
  return decoder.take_rows(cache, rows)


@functools.partial(
  jax.jit,
  static_argnames=('decoder', 'batch_size', 'max_length', 'num_samples'),
  donate_argnames=('cache',),
)
def _first_carry(
  cache, policy, keys, *, decoder, batch_size, max_length, num_samples
) -> Carry:
  """Returns the carry before the first token."""
  num_rows = batch_size * num_samples
  # `repeat` also makes copies: a state that were the policy's own array would
  # be donated together with the carry.
  policy_state, keys = jax.tree.map(
    lambda leaf: jnp.copy(jnp.repeat(leaf, num_samples, axis=0)),
    (policy.init(decoder, batch_size, max_length), keys),
  )
  return Carry(
    cache=cache,
    policy=policy_state,
    positions=jnp.zeros((num_rows,), jnp.int32),
    alive=jnp.ones((num_rows,), bool),
    previous_tokens=jnp.zeros((num_rows,), jnp.int32),
    tokens=jnp.zeros((num_rows, max_length), jnp.int32),
    exit_layers=jnp.full((num_rows, max_length), -1, jnp.int32),
    confidences=jnp.full((num_rows, max_length), jnp.nan, jnp.float32),
    rejected_confidences=jnp.full(
      (num_rows, max_length), -jnp.inf, jnp.float32
    ),
    scores=jnp.zeros((num_rows,), jnp.float32),
    keys=keys,
    samples=jnp.tile(jnp.arange(num_samples, dtype=jnp.int32), batch_size),
  )


@functools.partial(
  jax.jit,
  static_argnames=('decoder', 'depth_loop', 'eos_id'),
  donate_argnames=('carry',),
)
def _advance(
  carry, params, policy, sampler, steps, *, decoder, depth_loop, eos_id
) -> Carry:
  """Decodes up to `steps` tokens of every row that is alive."""

  def unfinished(loop):
    step, carry = loop
    return (step < steps) & carry.alive.any()

  def decode_token(loop):
    step, carry = loop
    carry = _decode_token(
      carry,
      params,
      policy,
      sampler,
      decoder=decoder,
      depth_loop=depth_loop,
      eos_id=eos_id,
    )
    return step + 1, carry

  _, carry = lax.while_loop(unfinished, decode_token, (jnp.int32(0), carry))
  return carry


def _decode_token(
  carry: Carry, params, policy, sampler, *, decoder, depth_loop, eos_id
) -> Carry:
  """Decodes one token of every row that is alive."""
  max_length = carry.tokens.shape[1]
  layers = Layers(
    decoder=decoder,
    params=params,
    policy=policy,
    # Rows that are full stay where they are; nothing of theirs is written.
    positions=jnp.minimum(carry.positions, max_length - 1),
    alive=carry.alive,
  )
  hidden = decoder.embed(
    params, carry.previous_tokens[:, None], layers.positions[:, None]
  )
  rows, memory = depth_loop(
    layers,
    layers.start(hidden, carry.policy),
    Memory(cache=carry.cache, cache_fill=carry.policy.cache_fill),
  )
  rows = layers.read(rows)
  keys = carry.keys
  if keys is not None:
    keys = sampling.draw_keys(keys, layers.positions, carry.samples)
  tokens, log_probabilities = sampling.choose(
    sampler, keys=keys, **rows.reading._asdict()
  )
  tokens = jnp.where(carry.alive, tokens, 0)
  positions = carry.positions + carry.alive
  here = jnp.arange(max_length) == layers.positions[:, None]
  here &= carry.alive[:, None]

  def write(array, values):
    return jnp.where(here, values[:, None], array)

  return dataclasses.replace(
    carry,
    cache=memory.cache,
    policy=dataclasses.replace(rows.policy, cache_fill=memory.cache_fill),
    positions=positions,
    alive=carry.alive & (tokens != eos_id) & (positions < max_length),
    previous_tokens=tokens,
    tokens=write(carry.tokens, tokens),
    exit_layers=write(carry.exit_layers, rows.exit_layers),
    confidences=write(carry.confidences, rows.confidences),
    rejected_confidences=write(
      carry.rejected_confidences, rows.rejected_confidences
    ),
    scores=carry.scores + jnp.where(carry.alive, log_probabilities, 0.0),
  )

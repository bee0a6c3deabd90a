"""The token loop: `generate`, and `start`, `advance`, `finish` that make it up.

Each row has its own position, so rows may be at different places of their
outputs. `advance` is one compiled `lax.while_loop` over tokens; what it carries
is one `Carry`, donated from call to call, while the numbers of policies and
samplers and the number of steps are traced, so that changing them compiles
nothing. All of it also runs inside another jitted program.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpy.typing import ArrayLike

from calm_jax import checks, sharding
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import (
  drafting,
  drafting_ahead,
  shrinking_batch,
  token_steps,
)
from calm_jax.decoding.policy import ComputePolicy
from calm_jax.decoding.sampling import Sampler
from calm_jax.decoding.starting import start
from calm_jax.decoding.states import (
  Carry,
  DecodeResult,
  DecodeState,
  Search,
)
from calm_jax.interfaces import BoundDecoder, ExitRule


def generate(
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
) -> DecodeResult:
  """Decodes inputs, stopping the layers of each token where the policy says.

  Args:
    bound: the decoder with its parameters, of `bind`.
    inputs: int [B, S] source tokens, 0 = padding.
    policy: what is computed for each token, or an exit rule alone; the full
      model by default.
    sampler: how tokens are chosen, `Greedy()` by default; or a `BeamSearch`.
    max_length: T, the most tokens of an output, EOS included.
    eos_id: the token that ends a row; -1 if none does.
    rng: for samplers that draw: one key, or [B] keys, one per request.
    num_samples: n, outputs per input; the encoder runs once for all. A beam
      search returns its n best, at most as many as it has beams. Results then
      have an axis of samples, [B, n, ...], also for n = 1; with None there is
      one output and no such axis, [B, ...].
    forced_prefix: int [B, P], what outputs begin with, 0 behind the tokens of
      shorter ones. It is part of the outputs, runs all L layers and has
      confidence NaN and log-probability 0.
    suppressed_tokens: int [N], ids that are never said; confidences and
      probabilities are those of a model that lacks them.

  Raises:
    ValueError: naming the bad value, if something cannot be decoded.
  """
  state = start(
    bound,
    inputs,
    policy=policy,
    sampler=sampler,
    max_length=max_length,
    eos_id=eos_id,
    rng=rng,
    num_samples=num_samples,
    forced_prefix=forced_prefix,
    suppressed_tokens=suppressed_tokens,
  )
  return finish(advance(state))


def advance(
  state: DecodeState, steps: int | Array | None = None
) -> DecodeState:
  """Decodes up to `steps` more tokens of every row; all of them if None.

  The carry of `state` is donated: use the returned state from here on.
  """
  if steps is None:
    # A row ends at T tokens at the latest, whatever steps that takes.
    steps = jnp.iinfo(jnp.int32).max
  elif not hasattr(steps, 'dtype'):
    checks.check_whole(steps, 'steps', low=0)
  steps = jnp.asarray(steps, jnp.int32)
  carry = _advance(*_traced(state), steps, **_static(state))
  return dataclasses.replace(state, carry=carry)


def lower_advance(state: DecodeState) -> jax.stages.Lowered:
  """Lowers `advance`, for a state of arrays or of their shapes."""
  steps = jax.ShapeDtypeStruct((), jnp.int32)
  return _advance.lower(*_traced(state), steps, **_static(state))


def _traced(state: DecodeState) -> tuple[PyTree, ...]:
  return state.carry, state.bound, state.policy, state.sampler


def _static(state: DecodeState) -> dict[str, Any]:
  return dict(eos_id=state.eos_id, num_samples=state.num_samples or 1)


def finish(state: DecodeState) -> DecodeResult:
  """Returns what has been decoded so far; `state` may be advanced further."""
  n = state.num_samples
  if isinstance(state.sampler, Search):
    result = state.sampler.results(state.carry, num_samples=n or 1)
  else:
    # Copies, because advancing the state would take the carry's buffers.
    result = jax.tree.map(jnp.copy, state.carry.result())
  if n is None:
    return result
  return jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), result)


@functools.partial(
  jax.jit,
  static_argnames=('eos_id', 'num_samples'),
  donate_argnames=('carry',),
)
def _advance(carry, bound, policy, sampler, steps, **static) -> Carry:
  """Decodes up to `steps` tokens of every row that is alive."""
  advance_rows = functools.partial(_advance_rows, **static)
  return sharding.map_rows(advance_rows, bound.mesh)(
    carry, bound, policy, sampler, steps
  )


def _advance_rows(carry, bound, policy, sampler, steps, **static) -> Carry:
  """The token loop, of all rows or those of one part of a mesh."""
  step = _step_of(policy, sampler)
  readout = policy.readout.keep_rows(bound)
  policy = dataclasses.replace(policy, readout=readout)

  length = carry.tokens.shape[1]
  number = jnp.int32(0)
  for segment in policy.layer_plan.segments(bound.num_layers, length):

    def unfinished(loop, few, end=segment.end):
      number, carry = loop
      goes_on = (number < steps) & (carry.alive.sum() > few)
      if end >= length:
        return goes_on
      # Rows that are further on wait for nobody: they run among the others.
      return goes_on & (carry.alive & (carry.positions < end)).any()

    def decode_token(loop, walk=segment.layers):
      number, carry = loop
      carry = step(carry, bound, policy, sampler, walk=walk, **static)
      return number + 1, carry

    def run_until(number, carry, few, unfinished=unfinished, step=decode_token):
      goes_on = functools.partial(unfinished, few=few)
      return lax.while_loop(goes_on, step, (number, carry))

    number, carry = shrinking_batch.run_rows(carry, number, bound, run_until)
  return carry


def _step_of(policy: ComputePolicy, sampler: Sampler) -> token_steps.TokenStep:
  """Returns what is repeated until all rows have ended."""
  if isinstance(sampler, Search):
    return token_steps.beam_step
  if policy.verification.drafts_ahead:
    return drafting_ahead.draft_ahead
  if policy.verifies:
    return drafting.draft_and_verify
  return token_steps.one_token

"""The states of a decode: what it carries, what surrounds it, what it gives.

A `DecodeState` is a pytree and a complete description of a decode under way;
its `carry` is the part that changes from token to token.
"""

import dataclasses

from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.policy import ComputePolicy, PolicyState
from calm_jax.decoding.sampling import Sampler
from calm_jax.interfaces import DepthLoop, LayeredDecoder
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Carry:
  """What changes from token to token. R = B * num_samples rows.

  Attributes:
    cache: the decoder's cache.
    policy: the states of the policy's slots.
    positions: int32 [R], 0..T: the position a row decodes next, which is also
      how many tokens it has.
    alive: bool [R], rows that have neither said EOS nor reached T.
    previous_tokens: int32 [R], the token each row decodes from; 0 at first.
    tokens: int32 [R, T], the tokens so far, 0 elsewhere.
    exit_layers: int32 [R, T], layers used, 1..L; -1 where not decoded.
    confidences: float32 [R, T], at the exit layer; NaN where nothing looked.
    rejected_confidences: float32 [R, T], the highest one that was too low.
    scores: float32 [R], sum of the tokens' log-probabilities.
    keys: [R] typed keys, one per request; None if the sampler draws nothing.
    samples: int32 [R], which sample of its request a row is.
  """

  cache: PyTree
  policy: PolicyState
  positions: Array
  alive: Array
  previous_tokens: Array
  tokens: Array
  exit_layers: Array
  confidences: Array
  rejected_confidences: Array
  scores: Array
  keys: Array | None
  samples: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """A decode under way.

  Attributes:
    params: the decoder's prepared parameters.
    policy: the policy, checked, its numbers as arrays.
    sampler: the sampler, likewise.
    carry: what changes from token to token; `advance` consumes it.
    decoder: the decoder.
    depth_loop: the depth loop.
    eos_id: the token that ends a row.
    num_samples: rows per request.
  """

  params: PyTree
  policy: ComputePolicy
  sampler: Sampler
  carry: Carry
  decoder: LayeredDecoder = dataclasses.field(metadata=dict(static=True))
  depth_loop: DepthLoop = dataclasses.field(metadata=dict(static=True))
  eos_id: int = dataclasses.field(metadata=dict(static=True))
  num_samples: int = dataclasses.field(metadata=dict(static=True))


@register_pytree
@dataclasses.dataclass(frozen=True)
class DecodeResult:
  """What was decoded, and how. With n > 1 samples, [B, ...] reads [B, n, ...].

  Attributes:
    tokens: int32 [B, T], EOS included, 0 after it.
    exit_layers: int32 [B, T], layers used, 1..L; -1 where nothing was decoded.
    confidences: float32 [B, T], at the exit layer; NaN where the exit rule did
      not look.
    rejected_confidences: float32 [B, T], the highest confidence that the exit
      rule saw and went on at; -inf where there was none.
    scores: float32 [B], sum of the log-probabilities of the emitted tokens
      under the distribution sampled from, EOS included.
    lengths: int32 [B], emitted tokens, EOS included.
  """

  tokens: Array
  exit_layers: Array
  confidences: Array
  rejected_confidences: Array
  scores: Array
  lengths: Array

"""The states of a decode: what it carries, what surrounds it, what it gives.

A `DecodeState` is a pytree and a complete description of a decode under way;
its `carry` is the part that changes from token to token.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.decoding.policy import ComputePolicy, PolicyState
from calm_jax.decoding.sampling import Sampler
from calm_jax.interfaces import BoundDecoder, LayeredDecoder, Reading, Work
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Drafts:
  """What a row with drafted tokens keeps; see `VerifyEvery`.

  Attributes:
    verified: int32 [R], 0..positions: how many of its tokens are checked, its
      first ones. The others are drafts.
    due: bool [R], rows whose next position runs all layers, which checks them.
    state: of the slot `verification`.
  """

  verified: Array
  due: Array
  state: PyTree = None


@register_pytree
@dataclasses.dataclass(frozen=True)
class Carry:
  """What changes from token to token. R rows, as many for each of B requests.

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
    work: [R, T] each, what was computed for every token.
    scores: float32 [R], sum of the tokens' log-probabilities.
    keys: [R] typed keys, one per request; None if the sampler draws nothing.
    samples: int32 [R], which sample of its request a row is.
    forced: int32 [R, T], the tokens of a forced prefix, 0 behind it; None if
      nothing is forced.
    encoder_exit_layers: int32 [R], encoder layers of the row's source; None if
      all run for all.
    search: what a `Search` keeps besides the rows; None for other samplers.
    drafts: which tokens are drafts; None where none are ever checked.
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
  work: Work
  scores: Array
  keys: Array | None
  samples: Array
  forced: Array | None = None
  encoder_exit_layers: Array | None = None
  search: PyTree = None
  drafts: Drafts | None = None

  def record(self, rows: Rows, memory: Memory) -> 'Carry':
    """Returns the carry with how the present token was computed in it."""
    return dataclasses.replace(
      self,
      cache=memory.cache,
      policy=dataclasses.replace(rows.policy, cache_fill=memory.cache_fill),
      exit_layers=self._write(self.exit_layers, rows.exit_layers),
      confidences=self._write(self.confidences, rows.confidences),
      rejected_confidences=self._write(
        self.rejected_confidences, rows.rejected_confidences
      ),
      work=jax.tree.map(self._add, self.work, rows.work),
    )

  def append(self, tokens: Array, scores: Array, eos_id: int) -> 'Carry':
    """Returns the carry with tokens [R] appended to the rows that are alive.

    A row whose score is no number ends without the token; see
    `DecodeResult.failed`.

    Args:
      tokens: int32 [R].
      scores: float32 [R], the scores with them.
      eos_id: the token that ends a row.
    """
    going = self.alive & ~jnp.isnan(scores)
    tokens = jnp.where(going, tokens, 0)
    positions = self.positions + going
    max_length = self.tokens.shape[1]
    return dataclasses.replace(
      self,
      positions=positions,
      alive=going & (tokens != eos_id) & (positions < max_length),
      previous_tokens=tokens,
      tokens=self._write(self.tokens, tokens),
      scores=scores,
    )

  def take_rows(self, rows: Array, decoder: LayeredDecoder) -> 'Carry':
    """Returns the carry with all that belongs to a row reordered, int32 [R].

    What a search keeps is no row's and stays.
    """
    taken = jax.tree.map(
      lambda leaf: leaf[rows],
      dataclasses.replace(self, cache=None, search=None),
    )
    cache = decoder.take_rows(self.cache, rows)
    return dataclasses.replace(taken, cache=cache, search=self.search)

  def result(self) -> 'DecodeResult':
    """Returns what the rows hold, [R, ...], but for unchecked drafts."""
    if self.drafts is not None:
      return self._without_drafts().result()
    prefix_lengths = jnp.zeros_like(self.positions)
    if self.forced is not None:
      prefix_lengths = (self.forced != 0).sum(axis=1, dtype=jnp.int32)
    return DecodeResult(
      tokens=self.tokens,
      exit_layers=self.exit_layers,
      confidences=self.confidences,
      rejected_confidences=self.rejected_confidences,
      work=self.work,
      scores=self.scores,
      lengths=self.positions,
      prefix_lengths=prefix_lengths,
      encoder_exit_layers=self.encoder_exit_layers,
    )

  def _without_drafts(self) -> 'Carry':
    """Returns the carry as if no draft had been made since the last check."""
    assert self.drafts is not None
    verified = self.drafts.verified
    # A row that failed has an exit layer, and no token, where it did.
    decoded = jnp.where(self.alive, verified, self.tokens.shape[1])
    kept = jnp.arange(self.tokens.shape[1]) < decoded[:, None]
    return dataclasses.replace(
      self,
      positions=verified,
      tokens=jnp.where(kept, self.tokens, 0),
      exit_layers=jnp.where(kept, self.exit_layers, -1),
      confidences=jnp.where(kept, self.confidences, jnp.nan),
      rejected_confidences=jnp.where(kept, self.rejected_confidences, -jnp.inf),
      drafts=None,
    )

  def _write(self, array: Array, values: Array) -> Array:
    """Writes values [R] at the present position of the rows that are alive."""
    here = jnp.arange(array.shape[1]) == self.positions[:, None]
    return jnp.where(here & self.alive[:, None], values[:, None], array)

  def _add(self, array: Array, values: Array) -> Array:
    """Adds values [R] at the present position of the rows that are alive."""
    here = jnp.arange(array.shape[1]) == self.positions[:, None]
    return array + jnp.where(here & self.alive[:, None], values[:, None], 0)


@runtime_checkable
class Search(Sampler, Protocol):
  """A sampler that also chooses which rows of a request go on.

  Other samplers choose a token for each row, and rows know nothing of each
  other.
  """

  def num_rows(self, num_samples: int) -> int:
    """Returns the rows of a request; raises ValueError if they are too few."""
    ...

  def start(self, carry: Carry) -> Carry:
    """Returns the carry before the first token."""
    ...

  def extend(
    self,
    carry: Carry,
    reading: Reading,
    *,
    decoder: LayeredDecoder,
    eos_id: int,
    num_samples: int,
  ) -> Carry:
    """Returns the carry after a token, its rows reordered."""
    ...

  def results(self, carry: Carry, *, num_samples: int) -> 'DecodeResult':
    """Returns `num_samples` outputs of each request, [B * num_samples, ...]."""
    ...


@register_pytree
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """A decode under way.

  Attributes:
    bound: the decoder with its parameters.
    policy: the policy, checked, its numbers as arrays.
    sampler: the sampler, likewise.
    carry: what changes from token to token; `advance` consumes it.
    eos_id: the token that ends a row.
    num_samples: outputs per request, and rows but for a `Search`; None for one
      whose results have no axis of samples.
  """

  bound: BoundDecoder
  policy: ComputePolicy
  sampler: Sampler
  carry: Carry
  eos_id: int = dataclasses.field(metadata=dict(static=True))
  num_samples: int | None = dataclasses.field(metadata=dict(static=True))

  @property
  def rows_per_request(self) -> int:
    """Rows per request: its samples or beams."""
    num_samples = self.num_samples or 1
    if isinstance(self.sampler, Search):
      return self.sampler.num_rows(num_samples)
    return num_samples


@register_pytree
@dataclasses.dataclass(frozen=True)
class DecodeResult:
  """What was decoded, and how.

  Where a number of samples n was asked for, 1 included, [B, ...] reads
  [B, n, ...]. Those of a beam search are its n best, best first; `BeamSearch`
  says in what order.

  Attributes:
    tokens: int32 [B, T], EOS included, 0 after it.
    exit_layers: int32 [B, T], layers used, 1..L; -1 where nothing was decoded.
    confidences: float32 [B, T], at the exit layer; NaN where the exit rule did
      not look.
    rejected_confidences: float32 [B, T], the highest confidence that the exit
      rule saw and went on at; -inf where there was none.
    work: int32 [B, T] each, what was computed for every token.
    scores: float32 [B], sum of the log-probabilities of the emitted tokens
      under the distribution sampled from, EOS included; a forced token adds 0,
      no length penalty is in it. NaN where the row failed.
    lengths: int32 [B], emitted tokens, forced ones and EOS included.
    prefix_lengths: int32 [B], how many of them were forced: the first ones.
    encoder_exit_layers: int32 [B], encoder layers that the source ran, 1..L_enc
      (`ComputePolicy.encoder_exit`); None where all run for all.
  """

  tokens: Array
  exit_layers: Array
  confidences: Array
  rejected_confidences: Array
  work: Work
  scores: Array
  lengths: Array
  prefix_lengths: Array
  encoder_exit_layers: Array | None = None

  @property
  def failed(self) -> Array:
    """Bool [B], rows that ended because their logits were not finite.

    Position `lengths` is where: it has an exit layer, and no token. All outputs
    of a beam search fail together.
    """
    return jnp.isnan(self.scores)

  @property
  def is_chosen(self) -> Array:
    """Bool [B, T], tokens that the model chose: what means are taken over.

    That leaves out a forced prefix, which runs all layers by decree.
    """
    positions = jnp.arange(self.exit_layers.shape[-1])
    return (self.exit_layers > 0) & (
      positions >= self.prefix_lengths[..., None]
    )

"""Beam search: the sampler-like value that also chooses which rows go on.

The beams of a request are rows of the batch like any others, and each of them
leaves the layers where its own confidence says. After every token the rows of
a request are given to its best continuations; what belongs to a row (cache,
states of the policy, records of its tokens) moves with it. Hypotheses that end
are set aside in a pool.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.decoding.sampling import Greedy
from calm_jax.decoding.states import Carry, DecodeResult
from calm_jax.interfaces import LayeredDecoder, Reading
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class Pool:
  """The best hypotheses of every request that ended with EOS, best first.

  Attributes:
    hypotheses: [R, ...], K for each of the B requests.
    ranks: float32 [R], what they are ordered by; -inf in places still empty.
  """

  hypotheses: DecodeResult
  ranks: Array


class Continuations(NamedTuple):
  """The N best ways to go on, of all rows of a request; best first.

  Attributes:
    scores: float32 [B, N], the sum of log-probabilities, this token included;
      -inf where there is none.
    tokens: int32 [B, N].
    parents: int32 [B, N], the rows they continue, 0..R-1.
  """

  scores: Array
  tokens: Array
  parents: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class BeamSearch:
  """Keeps the K most probable unfinished outputs of each request.

  A hypothesis is ranked by `score / ((5 + length) / 6) ** length_penalty`: its
  score is the plain sum of the log-probabilities of its tokens, EOS included,
  its length counts all of them (a forced prefix too, at log-probability 0).
  That is the length penalty of GNMT (arXiv 1609.08144, Eq. 14, with no coverage
  penalty) as in T5X's `decoding.beam_search`, whose answers these are.

  At each step the 2K best continuations of all beams are looked at: those that
  say EOS compete for the K places of the pool of finished hypotheses, and the
  best K of the others go on. A request ends at `max_length` tokens, or as soon
  as the n-th finished hypothesis, for n returned ones, ranks at least as high
  as any live one could if all its remaining tokens were certain; going on could
  not change what is returned. Fewer than n having ended, the best of the live
  ones follow after them.

  One beam has nothing to compare its only hypothesis with and is `Greedy`.

  Attributes:
    num_beams: K, at least 1.
    length_penalty: alpha, at least 0; the larger, the longer the outputs. With
      0 they are ranked by score alone.
  """

  num_beams: int = dataclasses.field(default=4, metadata=dict(static=True))
  length_penalty: Array | float = 0.6

  deterministic: ClassVar[bool] = True

  def check(self, vocab_size: int) -> 'BeamSearch | Greedy':
    """Returns itself with a float32 leaf; raises ValueError on bad numbers."""
    del vocab_size
    checks.check_whole(self.num_beams, 'num_beams', low=1)
    length_penalty = checks.checked_array(
      self.length_penalty,
      'length_penalty',
      low=0.0,
      high=jnp.finfo(jnp.float32).max,
      remedy='give 0 to rank by log-probability alone, or a positive exponent',
    )
    if self.num_beams == 1:
      return Greedy()
    return BeamSearch(self.num_beams, length_penalty)

  def transform(self, logits: Array) -> Array:
    """Returns the logits as they are: scores are those of the plain softmax."""
    return logits

  def num_rows(self, num_samples: int) -> int:
    """Returns K, the rows of a request, of which `num_samples` are returned.

    Raises:
      ValueError: if more are wanted than there are beams.
    """
    if num_samples > self.num_beams:
      raise ValueError(
        f'num_samples is {num_samples}, but a search with num_beams='
        f'{self.num_beams} finds at most so many; search with more beams'
      )
    return self.num_beams

  def rank(self, scores: Array, lengths: Array | int) -> Array:
    """Returns what hypotheses are ordered by, the best highest.

    Args:
      scores: float32, sums of log-probabilities.
      lengths: int32, tokens, EOS included.
    """
    return scores / ((5.0 + lengths) / 6.0) ** self.length_penalty

  def start(self, carry: Carry) -> Carry:
    """Returns the carry with one beam of each request alive, none finished.

    All rows are alike before the first token, so that K of them would find the
    same continuations K times.
    """
    first = carry.samples == 0
    scores = jnp.where(first, carry.scores, -jnp.inf)
    carry = dataclasses.replace(carry, alive=carry.alive & first, scores=scores)
    pool = Pool(
      # Copies: two leaves of one array could not both be donated.
      hypotheses=jax.tree.map(
        jnp.copy,
        dataclasses.replace(
          carry.result(), scores=jnp.full_like(scores, -jnp.inf)
        ),
      ),
      ranks=jnp.full_like(scores, -jnp.inf),
    )
    return dataclasses.replace(carry, search=pool)

  def extend(
    self,
    carry: Carry,
    reading: Reading,
    *,
    decoder: LayeredDecoder,
    eos_id: int,
    num_samples: int,
  ) -> Carry:
    """Returns the carry with the best continuations in the rows.

    Args:
      carry: where how the present token was computed is written down already.
      reading: of the R rows.
      decoder: reorders its own cache.
      eos_id: the token that ends a hypothesis.
      num_samples: n, how many are returned.

    Raises:
      ValueError: if only the best tokens of each row are known.
    """
    beams = (-1, self.num_beams)
    if reading.log_total is not None:
      raise ValueError(
        'a beam search looks at many tokens of each beam, this readout gives '
        'the best ones only; use the readout FullVocabulary()'
      )
    best = self._continuations(carry, reading.logits, reading.token_ids)
    pool = self._set_aside(carry, best, eos_id)
    scores, chosen = lax.top_k(
      jnp.where(best.tokens == eos_id, -jnp.inf, best.scores), self.num_beams
    )
    tokens, parents = (
      jnp.take_along_axis(values, chosen, axis=1).reshape(-1)
      for values in (best.tokens, best.parents)
    )
    # Requests that have ended stay as they are, whatever their rows compute.
    runs = jnp.repeat(carry.alive.reshape(beams).any(axis=1), self.num_beams)
    scores = jnp.where(runs, scores.reshape(-1), carry.scores)
    parents = jnp.where(runs, parents, jnp.arange(len(parents)))
    carry = carry.take_rows(parents, decoder)
    alive = carry.alive & (scores > -jnp.inf)
    carry = dataclasses.replace(carry, alive=alive, search=pool)
    carry = carry.append(tokens, scores, eos_id)
    # Certain tokens up to the longest length: no live one can rank higher.
    hopes = self.rank(scores, carry.tokens.shape[1]).reshape(beams)
    least = pool.ranks.reshape(beams)[:, num_samples - 1]
    settled = jnp.repeat(least >= hopes.max(axis=1), self.num_beams)
    return dataclasses.replace(carry, alive=carry.alive & ~settled)

  @functools.partial(jax.jit, static_argnames='num_samples')
  def results(self, carry: Carry, *, num_samples: int) -> DecodeResult:
    """Returns the best n of each request, finished ones first: [B * n, ...].

    Where there are not so many outputs (a vocabulary of fewer than K tokens and
    outputs of one), the last ones are empty with score -inf.
    """
    live, beams = carry.result(), (-1, self.num_beams)
    live_ranks = jnp.where(
      live.scores > -jnp.inf, self.rank(live.scores, live.lengths), -jnp.inf
    )
    ranks = [part.reshape(beams) for part in (carry.search.ranks, live_ranks)]
    kinds = [
      jnp.where(part > -jnp.inf, kind, 2) for kind, part in enumerate(ranks)
    ]
    # Of a request that failed, the beams as they were: not what ended before.
    failed = jnp.isnan(live.scores).reshape(beams).any(axis=1, keepdims=True)
    kinds = [
      jnp.where(failed, 2 - kind, part) for kind, part in enumerate(kinds)
    ]
    # Stable: of places that hold nothing, those of the pool come first.
    order = jnp.lexsort(
      (-jnp.concatenate(ranks, axis=1), jnp.concatenate(kinds, axis=1)), axis=1
    )
    order = order[:, :num_samples]
    to_live = len(carry.alive) - self.num_beams
    rows = jnp.where(order < self.num_beams, order, order + to_live)
    rows += self._first_rows(carry)
    picked = _pick(carry.search.hypotheses, live, rows.reshape(-1))
    failed = jnp.broadcast_to(failed, rows.shape).reshape(-1)
    scores = jnp.where(failed, jnp.nan, picked.scores)
    return dataclasses.replace(picked, scores=scores)

  def _continuations(
    self, carry: Carry, logits: Array, token_ids: Array | None
  ) -> Continuations:
    """Returns the 2K best of each request: at most K of them say EOS."""
    first_rows = self._first_rows(carry)
    num_requests = len(first_rows)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    most = 2 * self.num_beams
    width = min(most, logits.shape[-1])
    best, tokens = lax.top_k(log_probabilities, width)
    if token_ids is not None:
      tokens = jnp.take_along_axis(token_ids, tokens, axis=1)
    scores = jnp.where(
      carry.alive[:, None], carry.scores[:, None] + best, -jnp.inf
    )
    scores, places = lax.top_k(
      scores.reshape(num_requests, -1), min(most, self.num_beams * width)
    )
    tokens = jnp.take_along_axis(
      tokens.reshape(num_requests, -1), places, axis=1
    )
    return Continuations(scores, tokens, first_rows + places // width)

  def _set_aside(self, carry: Carry, best: Continuations, eos_id: int) -> Pool:
    """Returns the pool with the continuations that ended, if good enough."""
    lengths = carry.positions[best.parents] + 1
    ended = (best.tokens == eos_id) & (best.scores > -jnp.inf)
    ranks = jnp.where(ended, self.rank(best.scores, lengths), -jnp.inf)
    places = self._first_rows(carry) + jnp.arange(self.num_beams)
    ranks, chosen = lax.top_k(
      jnp.concatenate([carry.search.ranks[places], ranks], axis=1),
      self.num_beams,
    )
    chosen_of = functools.partial(jnp.take_along_axis, indices=chosen, axis=1)
    before, new = carry.search.hypotheses, carry.result()
    rows = jnp.concatenate([places, len(carry.alive) + best.parents], axis=1)
    picked = _pick(before, new, chosen_of(rows).reshape(-1))
    is_new = (chosen >= self.num_beams).reshape(-1)
    max_length = carry.tokens.shape[1]
    last = is_new[:, None] & (jnp.arange(max_length) == picked.lengths[:, None])
    scores = jnp.concatenate([before.scores[places], best.scores], axis=1)
    hypotheses = dataclasses.replace(
      picked,
      tokens=jnp.where(last, eos_id, picked.tokens),
      lengths=picked.lengths + is_new,
      scores=chosen_of(scores).reshape(-1),
    )
    return Pool(hypotheses=hypotheses, ranks=ranks.reshape(-1))

  def _first_rows(self, carry: Carry) -> Array:
    """Returns the first row of each request, int32 [B, 1]."""
    return jnp.arange(0, len(carry.alive), self.num_beams)[:, None]


def _pick(one: DecodeResult, other: DecodeResult, rows: Array) -> DecodeResult:
  """Returns rows of two results, those of the other counted on from R."""
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[rows], one, other)

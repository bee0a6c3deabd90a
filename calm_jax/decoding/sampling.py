"""Samplers: from the logits of a state to the next token and its probability.

A sampler says which distribution is sampled from (`transform`) and whether the
draw is random (`deterministic`). The noise of a request depends on its key, the
position and the sample index and on nothing else, so that it is the same in
whatever slot, batch or shard the request is decoded.
"""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exits.candidates import first_best
from calm_jax.pytrees import register_pytree

_TEMPERATURE_REMEDY = 'give a positive temperature, or Greedy() for the best'


@runtime_checkable
class Sampler(Protocol):
  """How the next token is chosen."""

  deterministic: ClassVar[bool]

  def check(self, vocab_size: int) -> 'Sampler':
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    ...

  def transform(self, logits: Array) -> Array:
    """Returns the logits [B, C] of the distribution sampled from."""
    ...


def as_sampler(sampler: Sampler | None) -> Sampler:
  """Returns the sampler, `Greedy()` for None.

  Raises:
    TypeError: for what is none, saying what to write.
  """
  if sampler is None:
    return Greedy()
  checks.check_no_class(sampler, 'sampler')
  if not isinstance(sampler, Sampler):
    raise TypeError(
      f'sampler is {sampler!r}; give one, such as decoding.Greedy() or '
      'decoding.Temperature(1.0)'
    )
  return sampler


@register_pytree
@dataclasses.dataclass(frozen=True)
class Greedy:
  """Takes the most probable token; its score is that of the plain softmax."""

  deterministic: ClassVar[bool] = True

  def check(self, vocab_size: int):
    """Returns itself: there is nothing to check."""
    del vocab_size
    return self

  def transform(self, logits: Array) -> Array:
    """Returns the logits as they are."""
    return logits


def _tempered(logits: Array, temperature: Array | float) -> Array:
  """Returns logits / temperature, shifted so that the best is 0."""
  return (logits - logits.max(axis=-1, keepdims=True)) / temperature


@register_pytree
@dataclasses.dataclass(frozen=True)
class Temperature:
  """Samples from softmax(logits / temperature).

  Attributes:
    temperature: positive; 1.0 is the model's own distribution.
  """

  temperature: Array | float = 1.0

  deterministic: ClassVar[bool] = False

  def check(self, vocab_size: int):
    """Returns itself with a float32 leaf; raises ValueError unless positive."""
    del vocab_size
    return Temperature(_checked_temperature(self.temperature))

  def transform(self, logits: Array) -> Array:
    """Returns the tempered logits."""
    return _tempered(logits, self.temperature)


@register_pytree
@dataclasses.dataclass(frozen=True)
class TopK:
  """Samples among the k most probable tokens.

  Attributes:
    k: how many, 1..V; of tokens that tie, the lower ids stay.
    temperature: positive.
  """

  k: int = dataclasses.field(metadata=dict(static=True))
  temperature: Array | float = 1.0

  deterministic: ClassVar[bool] = False

  def check(self, vocab_size: int):
    """Returns itself with a float32 leaf; raises ValueError on bad numbers."""
    checks.check_whole(self.k, 'k', low=1, high=vocab_size)
    return TopK(self.k, _checked_temperature(self.temperature))

  def transform(self, logits: Array) -> Array:
    """Returns tempered logits, -inf outside the k best."""
    k = min(self.k, logits.shape[-1])
    _, best = jax.lax.top_k(logits, k)
    rows = jnp.arange(logits.shape[0])[:, None]
    kept = jnp.zeros(logits.shape, bool).at[rows, best].set(True)
    return jnp.where(kept, _tempered(logits, self.temperature), -jnp.inf)


@register_pytree
@dataclasses.dataclass(frozen=True)
class Nucleus:
  """Samples among the most probable tokens that together reach `top_p`.

  The smallest such set, after the temperature (Holtzman et al., 2020).

  Attributes:
    top_p: in (0, 1]; 1.0 keeps every token.
    temperature: positive.
  """

  top_p: Array | float
  temperature: Array | float = 1.0

  deterministic: ClassVar[bool] = False

  def check(self, vocab_size: int):
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    del vocab_size
    top_p = checks.checked_array(
      self.top_p,
      'top_p',
      low=jnp.finfo(jnp.float32).tiny,
      high=1.0,
      remedy='give a probability mass in (0, 1]',
    )
    return Nucleus(top_p, _checked_temperature(self.temperature))

  def transform(self, logits: Array) -> Array:
    """Returns tempered logits, -inf outside the nucleus."""
    logits = _tempered(logits, self.temperature)
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    mass_before = jnp.cumsum(ordered, axis=-1) - ordered
    # The sum of all may round above 1, which must not cut tokens off.
    kept_in_order = (mass_before < self.top_p) | (self.top_p >= 1.0)
    kept_in_order = kept_in_order.at[:, 0].set(True)
    rows = jnp.arange(logits.shape[0])[:, None]
    kept = jnp.zeros(logits.shape, bool).at[rows, order].set(kept_in_order)
    return jnp.where(kept, logits, -jnp.inf)


def choose(
  sampler: Sampler,
  logits: Array,
  *,
  token_ids: Array | None = None,
  log_total: Array | None = None,
  keys: Array | None = None,
) -> tuple[Array, Array]:
  """Chooses the next token of every row.

  Args:
    sampler: how.
    logits: float32 [B, C].
    token_ids: int32 [B, C], the vocabulary ids of the candidates, or None when
      they are the whole vocabulary in order.
    log_total: float32 [B], what probabilities are shares of, where that is more
      than the candidates (see `interfaces.Reading`).
    keys: [B] typed keys, one draw each; unused by deterministic samplers.

  Returns:
    The tokens, int32 [B], and the log-probability of each under the
    distribution sampled from, float32 [B].

  Raises:
    ValueError: if the sampler draws and only the best tokens are known.
  """
  if log_total is not None and not sampler.deterministic:
    raise ValueError(
      f'{type(sampler).__name__} draws among all tokens, this readout gives '
      'the best ones only; use Greedy() or the readout FullVocabulary()'
    )
  logits = sampler.transform(logits.astype(jnp.float32))
  scores = logits
  if not sampler.deterministic:
    # Gumbel-max: the argmax of logits plus noise is a draw from the softmax.
    width = logits.shape[-1:]
    scores += jax.vmap(lambda key: jax.random.gumbel(key, width))(keys)
  choice = first_best(scores)[:, None]
  chosen = jnp.take_along_axis(logits, choice, axis=-1)[:, 0]
  if log_total is None:
    log_total = jax.nn.logsumexp(logits, axis=-1)
  tokens = choice
  if token_ids is not None:
    tokens = jnp.take_along_axis(token_ids, choice, axis=-1)
  return tokens[:, 0].astype(jnp.int32), chosen - log_total


def request_keys(rng: Array, batch_size: int) -> Array:
  """Returns one typed key per request.

  Args:
    rng: one key, from which request r gets fold_in(rng, r), or [B] keys that
      are the requests' own; typed, or raw uint32 [2] and [B, 2].
    batch_size: B.

  Raises:
    ValueError: if it is neither.
  """
  rng = jnp.asarray(rng)
  if jnp.issubdtype(rng.dtype, jnp.unsignedinteger) and rng.ndim:
    rng = jax.random.wrap_key_data(rng)
  if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    raise ValueError(
      f'rng has dtype {rng.dtype}; give jax.random.key(seed) or one key per row'
    )
  if rng.shape == ():
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch_size))
  if rng.shape != (batch_size,):
    raise ValueError(
      f'rng holds keys of shape {list(rng.shape)}; give one key or '
      f'[{batch_size}], one per row'
    )
  return rng


def draw_keys(keys: Array, positions: Array, samples: Array) -> Array:
  """Returns the keys [B] of one draw: request, then position, then sample."""
  fold_in = jax.vmap(jax.random.fold_in)
  return fold_in(fold_in(keys, positions), samples)


def _checked_temperature(temperature: Array | float) -> Array:
  """Checks that a temperature is positive."""
  return checks.checked_array(
    temperature,
    'temperature',
    low=jnp.finfo(jnp.float32).tiny,
    high=jnp.finfo(jnp.float32).max,
    remedy=_TEMPERATURE_REMEDY,
  )

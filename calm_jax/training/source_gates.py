"""Gates of source positions: what a scorer learns by, and how hard they shut.

Dynamic Context Pruning (arXiv 2305.15805) on the source: the logarithm of a
gate is added to the logits of every cross-attention, so that an open gate (1)
changes nothing and a shut one (0) hides its position. Gates are alpha-sigmoids
of scores, whose alpha rises while training: at 1 the sigmoid, at infinity what
decoding does (`decoding.PrunedSource`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.model import relative_positions

# Below it an alpha-sigmoid is the sigmoid, to float32's digits.
_NEARLY_ONE = 1e-3
# The least share, and price.
_LEAST = 1e-6
# Halvings of [0, 1]: a gate is known to a float's last digits.
_HALVINGS = 30


@dataclasses.dataclass(frozen=True)
class SourceBudget:
  """How much of sources is to be read, and how training comes to it.

  Attributes:
    share: the mean gate that is aimed at, in (0, 1]: of the tokens of sources
      so many are to be kept.
    price: of (mean gate - share)^2, beside nats per target token.
    anneal_steps: steps until alpha is `last_alpha`, along half a cosine.
    last_alpha: at least 1; 1 leaves gates sigmoids.
  """

  share: float = 0.5
  price: float = 10.0
  anneal_steps: int = 500
  last_alpha: float = 8.0

  def __post_init__(self):
    """Raises ValueError, naming what cannot be aimed at."""
    for name, low, high, remedy in (
      ('share', _LEAST, 1.0, 'the share of source tokens to keep, in (0, 1]'),
      ('price', _LEAST, 1e9, 'a price above 0'),
      ('last_alpha', 1.0, 1e3, 'the last alpha, from 1 to 1000'),
    ):
      value = getattr(self, name)
      if not checks.is_number(value) or not low <= value <= high:
        raise ValueError(f'{name} of SourceBudget is {value!r}; give {remedy}')
    checks.check_whole(self.anneal_steps, 'anneal_steps', low=1)

  def alpha(self, step: Array) -> Array:
    """Returns alpha after so many steps, float32."""
    return annealed_alpha(step, self.anneal_steps, self.last_alpha)

  def loss(self, mean_gate: Array) -> Array:
    """Returns what missing the share costs, float32."""
    return self.price * jnp.square(mean_gate - self.share)


def annealed_alpha(step: Array, steps: int, last: float) -> Array:
  """Returns alpha from 1 to `last` along half a cosine, float32.

  Args:
    step: how many were taken.
    steps: after how many it is `last`.
    last: at least 1.
  """
  return 1.0 + (last - 1.0) * risen(step, steps)


def risen(step: Array, steps: int) -> Array:
  """Returns half a cosine from 0 to 1, float32.

  Args:
    step: how many were taken.
    steps: after how many it is 1.
  """
  done = jnp.minimum(step / steps, 1.0)
  return (1.0 - jnp.cos(jnp.pi * done)) / 2


@jax.custom_jvp
def alpha_sigmoid(scores: Array, alpha: Array) -> Array:
  """Returns the first of the two shares of alpha-entmax of (score, 0).

  With u = alpha - 1 it is the p in [0, 1] with (p^u - (1-p)^u) / u = score,
  which rises in p, and 0 or 1 where score is at or beyond -1/u or 1/u: at u = 0
  the sigmoid, at 1 sparsemax. Found by halving, for any alpha.

  Args:
    scores: float32 [...].
    alpha: float32 [], at least 1; no gradient comes by it.
  """
  u = alpha - 1.0
  safe = jnp.maximum(u, _NEARLY_ONE)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    above = middle**safe - (1 - middle) ** safe > safe * scores
    return jnp.where(above, low, middle), jnp.where(above, middle, high)

  bounds = jnp.zeros_like(scores), jnp.ones_like(scores)
  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
  found = jnp.where(safe * scores >= 1.0, 1.0, (low + high) / 2)
  found = jnp.where(safe * scores <= -1.0, 0.0, found)
  return jnp.where(u < _NEARLY_ONE, jax.nn.sigmoid(scores), found)


@alpha_sigmoid.defjvp
def _slope(primals, tangents):
  """By the implicit function; a gate that is shut or wide open stays so."""
  scores, alpha = primals
  gates = alpha_sigmoid(scores, alpha)
  inside = (gates > 0.0) & (gates < 1.0)
  p = jnp.where(inside, gates, 0.5)
  slope = 1.0 / (p ** (alpha - 2.0) + (1.0 - p) ** (alpha - 2.0))
  return gates, jnp.where(inside, slope, 0.0) * tangents[0]


def gate_bias(gates: Array, scores: Array, mask: Array) -> Array:
  """Returns what cross-attention adds for gates, float32 [B, S].

  The best position of a source stays, whatever its gate, as in decoding.

  Args:
    gates: float32 [B, S], in [0, 1].
    scores: float32 [B, S], that they are of.
    mask: bool [B, S], tokens.
  """
  best = jnp.where(mask, scores, -jnp.inf).argmax(axis=1)
  is_best = jnp.arange(scores.shape[1]) == best[:, None]
  is_open = gates > 0.0
  logs = jnp.log(jnp.where(is_open, gates, 1.0))
  return jnp.where(is_open | is_best, logs, relative_positions.MASKED)

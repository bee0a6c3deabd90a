"""Source plans: which source positions a decode reads, once per request.

The `source_plan` slot of a policy. What a step of a T5 reads beside its
parameters is, with long sources, mostly the keys and values of the source:
they are made and read for the positions that are kept alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import BoundDecoder, LayeredDecoder, StatelessSlot
from calm_jax.pytrees import register_pytree
from calm_jax.source_scorer import SourceScorer


@register_pytree
@dataclasses.dataclass(frozen=True)
class WholeSource(StatelessSlot):
  """Reads all of the source. The null object: it is in no program."""

  whole = True

  def select(self, bound: BoundDecoder, encoded: PyTree) -> tuple[Array, Array]:
    """Returns all positions."""
    _, mask = bound.source_states(encoded)
    places = jnp.arange(mask.shape[1], dtype=jnp.int32)
    return jnp.broadcast_to(places, mask.shape), jnp.ones(mask.shape, bool)


@register_pytree
@dataclasses.dataclass(frozen=True)
class PrunedSource:
  """Reads the C source positions of the best scores, if their gates are open.

  In the style of Dynamic Context Pruning (arXiv 2305.15805), on what T5 reads
  most of: not the decoder's own past but the source, chosen once. A position's
  gate is open where x = score + beta_shift > 0, the method's alpha = infinity;
  the best position's always. Of more open ones than C the best stay, in their
  order. Padding is never kept before a token.

  With C >= S and beta_shift = infinity it is the unpruned model to the bit.

  Attributes:
    scorer: trained for the model (`runs.load_source_scorer`).
    keep: C, at least 1; a program has room for so many, or S if that is less.
    beta_shift: float32 [], added to every score: a higher one keeps no less;
      infinity for C positions whatever their gates.
  """

  scorer: SourceScorer
  keep: int = dataclasses.field(metadata=dict(static=True))
  beta_shift: Array | float = 0.0

  whole = False

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'PrunedSource':
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    del batch_size, max_length
    for name in ('source_states', 'select_source'):
      if getattr(decoder, name) is None:
        raise ValueError(
          f'PrunedSource keeps a part of the source, and this decoder has no '
          f'{name}: give its LayeredDecoder one, or take '
          'decoding.WholeSource()'
        )
    checks.check_no_class(self.scorer, 'scorer')
    if not isinstance(self.scorer, SourceScorer):
      raise ValueError(
        f'scorer is {self.scorer!r}; give a SourceScorer, such as '
        'runs.load_source_scorer(model_dir)'
      )
    checks.check_whole(self.keep, 'keep of PrunedSource', low=1)
    beta_shift = checks.checked_array(
      self.beta_shift,
      'beta_shift of PrunedSource',
      low=-jnp.inf,
      high=jnp.inf,
      remedy='give a number to add to scores, float("inf") to close no gate',
    )
    # A plain int, so that one from NumPy or gin compiles nothing anew.
    return PrunedSource(self.scorer.check(decoder), int(self.keep), beta_shift)

  def select(self, bound: BoundDecoder, encoded: PyTree) -> tuple[Array, Array]:
    """Returns the best positions in their order, and which gates are open."""
    states, mask = bound.source_states(encoded)
    scores = jnp.where(mask, self.scorer.scores(states), -jnp.inf)
    best, places = jax.lax.top_k(scores, min(self.keep, mask.shape[1]))
    is_open = (best + self.beta_shift > 0).at[:, 0].set(True)
    order = jnp.argsort(places, axis=1)
    return (
      jnp.take_along_axis(places, order, axis=1).astype(jnp.int32),
      jnp.take_along_axis(is_open, order, axis=1),
    )

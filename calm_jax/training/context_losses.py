"""What a model with a pruned context says, beside what it says with all of it.

The frozen model is the teacher, as it is for source scorers: a language-model
loss whose targets are its own distributions, less their entropy, which no gate
changes. The price is of the mean share of past positions that are kept.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import checks, model
from calm_jax.array_types import Array, Params
from calm_jax.pytrees import register_pytree
from calm_jax.training import forward, source_gates
from calm_jax.training import step as step_lib
from calm_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class ContextPrice:
  """What keeping past positions costs, and how hard gates shut meanwhile.

  The price rises with alpha, other than in arXiv 2305.15805, which fine-tunes
  the model for long. At its full height from the first step it shuts all gates
  of a frozen model alike while they are soft, which attention, a ratio, hardly
  feels; once they are steps they let nothing through, and have no slope to
  open again.

  Attributes:
    price: gamma of arXiv 2305.15805, at last: of the mean keep, beside nats per
      target token.
    anneal_steps: steps until alpha is `last_alpha` and the price whole, along
      half a cosine.
    last_alpha: at least 1; 1 leaves gates sigmoids.
  """

  price: float = 0.3
  anneal_steps: int = 500
  last_alpha: float = 8.0

  def __post_init__(self):
    """Raises ValueError, naming what cannot be asked for."""
    for name, low, high, remedy in (
      ('price', 0.0, 1e9, 'a price of 0 or more'),
      ('last_alpha', 1.0, 1e3, 'the last alpha, from 1 to 1000'),
    ):
      value = getattr(self, name)
      if not checks.is_number(value) or not low <= value <= high:
        raise ValueError(f'{name} of ContextPrice is {value!r}; give {remedy}')
    checks.check_whole(self.anneal_steps, 'anneal_steps', low=1)

  def alpha(self, step: Array) -> Array:
    """Returns alpha after so many steps, float32."""
    return source_gates.annealed_alpha(step, self.anneal_steps, self.last_alpha)

  def after(self, step: Array) -> Array:
    """Returns the price after so many steps, float32."""
    return self.price * source_gates.risen(step, self.anneal_steps)


@register_pytree
@dataclasses.dataclass(frozen=True)
class ContextExamples:
  """A batch, and what the model makes of it with all of its context; constants.

  Attributes:
    best: int32 [B, T], what the model says.
    teacher: its distributions [B, T, V].
    weights: float32 [B, T], 1 at target tokens.
    pairs: bool [B, T, T], past positions j < i of target tokens i.
  """

  best: Array
  teacher: Teacher
  weights: Array
  pairs: Array

  def apart(self, logits: Array) -> tuple[Array, Array]:
    """Returns KL(whole || these) in nats and tokens that agree, sums.

    Args:
      logits: float32 [B, T, V], of the last layer.
    """
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    apart = self.teacher.distance(logits, normalizer)
    right = logits.argmax(axis=-1) == self.best
    return (apart * self.weights).sum(), (right * self.weights).sum()

  def mean_keep(self, keep: Array) -> Array:
    """Returns the mean of keep [L, B, T, T] over past positions, float32."""
    count = jnp.maximum(self.pairs.sum() * len(keep), 1)
    return jnp.where(self.pairs, keep, 0.0).sum() / count


def context_examples(
  config: model.T5Config, params: Params, batch: Mapping[str, Any]
) -> ContextExamples:
  """Runs the frozen model on a batch, teacher forced and without dropout.

  Args:
    config: the model.
    params: its parameters.
    batch: a batch with T5X's keys, a request per row; targets are what the
      model itself says, or any text.
  """
  states = forward.batch_states(config, params, batch)
  logits = model.output_logits(config, params, states[-1])
  weights = (batch['decoder_loss_weights'] > 0).astype(jnp.float32)
  length = weights.shape[1]
  behind = jnp.tril(jnp.ones((length, length), bool), -1)
  return jax.lax.stop_gradient(
    ContextExamples(
      best=logits.argmax(axis=-1),
      teacher=Teacher.of_logits(logits),
      weights=weights,
      pairs=behind & (weights > 0)[..., None],
    )
  )


def check_context_batch(
  batch: Mapping[str, Any], config: model.T5Config
) -> dict[str, Any]:
  """Returns the arrays that a step reads.

  Raises:
    ValueError: for a bad batch, or one that packs several requests into a row.
  """
  arrays = step_lib.check_batch(batch, config)
  if 'encoder_segment_ids' in arrays:
    raise ValueError(
      'the batch has encoder_segment_ids, several requests in a row, and a '
      'token would drop those of another request: leave packing out'
    )
  return arrays

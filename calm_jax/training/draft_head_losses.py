"""What a draft head guesses under teacher forcing, and how often it is right.

The head is unrolled as it drafts: from the frozen model's last states at every
position it guesses those at the next one, from these guesses those one further,
and so on. Each guess is read by the model's own output matrix and compared with
the token that the model itself would say there.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.data import packing
from calm_jax.draft_heads import DraftHead
from calm_jax.pytrees import register_pytree
from calm_jax.training import step as step_lib


@register_pytree
@dataclasses.dataclass(frozen=True)
class DraftCounts:
  """Sums over places, for the first draft after a checked token to the K-th.

  Attributes:
    places: float32 [K], target tokens that so long a draft can reach.
    cross_entropy: float32 [K], of the model's token, in nats.
    right: float32 [K], drafts that are the model's token.
    kept: float32 [K], those before which all other drafts are right, too.
  """

  places: Array
  cross_entropy: Array
  right: Array
  kept: Array

  def rates(self) -> tuple[Array, Array, Array]:
    """Returns cross-entropy, right and kept per place, [K] each."""
    places = jnp.maximum(self.places, 1.0)
    return self.cross_entropy / places, self.right / places, self.kept / places


def count_drafts(
  config: model.T5Config,
  params: Params,
  head: DraftHead,
  batch: Mapping[str, Any],
  drafts: int,
) -> DraftCounts:
  """Returns what K drafts from every position come to.

  Differentiable in the head. Tokens are those of the targets, so that a draft
  is judged after the right tokens, as it is while all before it are kept.

  Args:
    config: the model.
    params: its parameters, frozen.
    head: the head.
    batch: a batch with T5X's keys, packed or not.
    drafts: K.
  """
  states = step_lib.batch_states(config, params, batch)[-1]
  labels = model.output_logits(config, params, states).argmax(axis=-1)
  tokens = batch['decoder_input_tokens']
  segments = batch.get(packing.SEGMENT_KEYS[1], jnp.ones_like(tokens))
  recent = [
    jnp.where(_same_example(segments, back), _shifted(tokens, back), 0)
    for back in range(head.num_tokens)
  ]
  table = params['token_embedder']['embedding']
  embeddings = jnp.take(table, jnp.stack(recent, axis=-1), axis=0)
  embeddings = embeddings.astype(states.dtype)
  weights = batch['decoder_loss_weights'].astype(jnp.float32)

  @jax.checkpoint
  def judge(states, where):
    # Logits of one draft are in memory at a time.
    logits = model.output_logits(config, params, states)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(axis=-1) == labels) & (where > 0)
    return (losses * where).sum(), right

  sums = []
  kept = jnp.ones(tokens.shape, bool)
  for number in range(1, drafts + 1):
    states = head(_shifted(states, 1), embeddings).astype(states.dtype)
    where = weights * _same_example(segments, number)
    loss, right = judge(states, where)
    kept = _shifted(kept, 1) & right if number > 1 else right
    sums.append((where.sum(), loss, right.sum(), kept.sum()))
  return DraftCounts(*(jnp.stack(column) for column in zip(*sums, strict=True)))


def evaluate_draft_head(
  config: model.T5Config,
  params: Params,
  head: DraftHead,
  batches: Iterable[Mapping[str, Any]],
  *,
  drafts: int,
) -> DraftCounts:
  """Returns the counts of a whole set, in float64.

  Args:
    config: the model.
    params: its parameters.
    head: the head.
    batches: dicts of NumPy arrays with T5X's keys.
    drafts: K.

  Raises:
    ValueError: if a batch is bad, or no draft has a place.
  """
  count = _make_count(config, drafts)
  counts = jax.device_get(
    [
      count(params, head, step_lib.check_batch(batch, config))
      for batch in batches
    ]
  )
  if not sum(part.places[-1] for part in counts) > 0:
    raise ValueError(
      f'the {len(counts)} validation batches of the draft head have no target '
      f'of more than {drafts} tokens: is the split empty, or drafts too large?'
    )
  return jax.tree.map(
    lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *counts
  )


@functools.lru_cache(maxsize=8)
def _make_count(
  config: model.T5Config, drafts: int
) -> Callable[..., DraftCounts]:
  """Returns the jitted `(params, head, batch) -> DraftCounts`."""

  def count(params, head, batch):
    return count_drafts(config, params, head, batch, drafts)

  return jax.jit(count)


def _shifted(values: Array, places: int) -> Array:
  """Returns [B, T, ...] with each value `places` further on, zeros before."""
  padding = [(0, 0)] * values.ndim
  padding[1] = (places, 0)
  return jnp.pad(values, padding)[:, : values.shape[1]]


def _same_example(segments: Array, back: int) -> Array:
  """Returns where the position so far back is of the same example [B, T]."""
  far_enough = jnp.arange(segments.shape[1]) >= back
  return (segments == _shifted(segments, back)) & far_enough

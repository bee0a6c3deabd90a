"""What patterns of feed-forwards give the labels of tokens, teacher forced."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model, training
from calm_jax.benchmarks.twin_patterns import Pattern
from calm_jax.small_twins import SmallTwins


def label_scores(
  config: model.T5Config,
  params: Any,
  twins: SmallTwins,
  batches: Sequence[Mapping[str, Any]],
  patterns: Sequence[Pattern],
  *,
  num_permutations: int,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns log-probabilities of tokens' labels, and of permuted ones.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    batches: with T5X's keys, not packed.
    patterns: R of them.
    num_permutations: K, of the labels of all target tokens.
    rng: draws them.

  Returns:
    float [N, R] and [K, N, R].

  Raises:
    ValueError: if there is no target token.
  """
  where = [batch['decoder_loss_weights'] > 0 for batch in batches]
  labels = np.concatenate(
    [
      batch['decoder_target_tokens'][kept]
      for batch, kept in zip(batches, where, strict=True)
    ]
  )
  if not labels.size:
    raise ValueError('there is no target token to score')
  asked = [labels, *(rng.permutation(labels) for _ in range(num_permutations))]
  score = jax.jit(functools.partial(_scores, config))
  starts = np.cumsum([0, *(kept.sum() for kept in where)])
  found = np.zeros((len(asked), len(labels), len(patterns)))
  for number, (batch, kept) in enumerate(zip(batches, where, strict=True)):
    here = slice(starts[number], starts[number + 1])
    of_batch = np.zeros((len(asked), *kept.shape), np.int32)
    of_batch[:, kept] = [one[here] for one in asked]
    for place, pattern in enumerate(patterns):
      chosen = np.array(pattern, np.int32)[None, None]
      logs = np.asarray(score(params, twins, dict(batch), chosen, of_batch))
      found[:, here, place] = logs[:, kept]
  return found[0], found[1:]


def _scores(config, params, twins, batch, choices, labels):
  """Returns the log-probabilities of labels [K, B, T] with a pattern."""
  states = training.chosen_states(config, params, twins, batch, choices)
  logs = jax.nn.log_softmax(model.output_logits(config, params, states[-1]))
  return jnp.take_along_axis(logs[None], labels[..., None], axis=-1)[..., 0]


def first_tokens(
  batches: Iterator[Mapping[str, Any]], number: int
) -> list[dict[str, Any]]:
  """Returns the batches that hold the first target tokens, others weightless.

  Args:
    batches: with T5X's keys.
    number: how many target tokens.
  """
  kept = []
  for batch in batches:
    weights = np.array(batch['decoder_loss_weights'])
    order = np.cumsum(weights > 0).reshape(weights.shape)
    weights[order > number] = 0
    kept.append({**batch, 'decoder_loss_weights': weights})
    number -= int((weights > 0).sum())
    if number <= 0:
      break
  return kept

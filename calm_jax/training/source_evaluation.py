"""What pruning sources by a scorer costs, beside pruning by chance.

One pass over the batches, teacher forced with what the full model says.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model, records
from calm_jax.array_types import Params
from calm_jax.source_scorer import SourceScorer
from calm_jax.training import source_losses

# Falling, as a calibration tries them; infinity is the whole source.
SHIFTS = (float('inf'), 2.0, 1.0, 0.5, 0.0, -0.5, -1.0)


@dataclasses.dataclass(frozen=True)
class SourceMeasurement:
  """A scorer on a set of requests; see `records.SourceScorerEvaluation`.

  Attributes:
    num_tokens: of outputs.
    num_positions: of sources.
    shifts: what is lost at falling shifts.
  """

  num_tokens: int
  num_positions: int
  shifts: tuple[records.PrunedShare, ...]


def evaluate_source_scorer(
  config: model.T5Config,
  params: Params,
  scorer: SourceScorer,
  batches: Iterable[Mapping[str, Any]],
  *,
  shifts: Sequence[float] = SHIFTS,
  seed: int = 0,
) -> SourceMeasurement:
  """Returns what a scorer's gates cost on a whole set, and what chance does.

  Args:
    config: the model.
    params: its parameters.
    scorer: the scorer.
    batches: dicts of NumPy arrays with T5X's keys; targets are what the full
      model says.
    shifts: `beta_shift` of `decoding.PrunedSource`.
    seed: of what chance keeps.

  Raises:
    ValueError: if the scorer is of another model's shape, a batch is bad, or
      all hold no target token.
  """
  scorer = scorer.check(model.as_layered_decoder(config))
  look, sums = _make_look(config), []
  array = jnp.asarray(shifts, jnp.float32)
  for number, batch in enumerate(batches):
    batch = source_losses.check_source_batch(batch, config)
    key = jax.random.fold_in(jax.random.key(seed), number)
    sums.append(jax.device_get(look(params, scorer, batch, array, key)))
  if not sum(float(tokens) for tokens, *_ in sums) > 0:
    raise ValueError(
      f'the {len(sums)} validation batches of the source scorer hold no target '
      'token: is the split empty, or the iterator used up?'
    )
  tokens, positions, found = (
    np.sum(parts, axis=0, dtype=np.float64) for parts in zip(*sums, strict=True)
  )
  return SourceMeasurement(
    num_tokens=int(tokens),
    num_positions=int(positions),
    shifts=tuple(
      _share(shift, tokens, positions, row)
      for shift, row in zip(shifts, found, strict=True)
    ),
  )


def _share(
  shift: float, tokens: float, positions: float, sums: np.ndarray
) -> records.PrunedShare:
  """Returns rates of one shift, of what `_make_look` sums."""
  kept, apart, right, chance_apart, chance_right = map(float, sums)
  return records.PrunedShare(
    beta_shift=None if shift == np.inf else float(shift),
    kept=kept / positions,
    differing=1.0 - right / tokens,
    divergence=apart / tokens,
    chance_differing=1.0 - chance_right / tokens,
    chance_divergence=chance_apart / tokens,
  )


@functools.lru_cache(maxsize=8)
def _make_look(config: model.T5Config) -> Callable[..., Any]:
  """Returns the jitted `(params, scorer, batch, shifts, key) -> sums`.

  Target tokens [], source tokens [], and per shift [N, 5]: positions kept,
  divergence and tokens that agree; these two again with as many by chance.
  """

  def look(params, scorer, batch, shifts, key):
    examples = source_losses.source_examples(config, params, batch)
    mask = examples.mask
    scores = jnp.where(mask, scorer.scores(examples.hidden), -jnp.inf)
    drawn = jnp.where(mask, jax.random.uniform(key, scores.shape), -jnp.inf)
    best = scores.argmax(axis=1, keepdims=True)
    is_best = (jnp.arange(scores.shape[1]) == best) & mask
    # Of each source the places of positions, the highest drawn first.
    ranks = jnp.argsort(jnp.argsort(-drawn, axis=1), axis=1)

    def at(shift):
      kept = ((scores + shift > 0) | is_best) & mask
      by_chance = ranks < kept.sum(axis=1, keepdims=True)
      return jnp.stack(
        [
          kept.sum().astype(jnp.float32),
          *_apart(kept, scores),
          *_apart(by_chance, drawn),
        ]
      )

    def _apart(kept, scores):
      return source_losses.apart_with_gates(
        config, params, batch, examples, kept.astype(jnp.float32), scores
      )

    # A loop, so that the logits of one shift are in memory at a time.
    return examples.weights.sum(), mask.sum(), jax.lax.map(at, shifts)

  return jax.jit(look)

"""How often a shortlist misses: what pruning the vocabulary may cost, by layer.

Given outputs are run through all layers, teacher forced. At each layer one asks
whether the best of all V tokens is still among the candidates that an early
layer left, and how much of the probability they hold. Where they hold the share
s of it and the two best tokens, a margin over them is 1 / s times the full one.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from calm_jax import checks, decoding, interfaces
from calm_jax.array_types import Array
from calm_jax.evaluation import teacher_forcing
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.exits.candidates import first_best


@dataclasses.dataclass(frozen=True, eq=False)
class ShortlistMisses:
  """How a shortlist fares in the layers after it.

  Attributes:
    miss_rates: float64 [L], the share of tokens whose best token at a layer is
      no candidate; NaN at layers before the first check.
    kept_probabilities: float64 [L], the mean probability that the candidates
      hold; likewise.
    num_tokens: how many tokens were looked at.
  """

  miss_rates: np.ndarray
  kept_probabilities: np.ndarray
  num_tokens: int


def count_shortlist_misses(
  bound: interfaces.BoundDecoder,
  batches: Iterable[Batch],
  tokens: np.ndarray,
  *,
  readout: decoding.PrunedVocabulary,
  first_exit_layer: int = 1,
) -> ShortlistMisses:
  """Counts the tokens of given outputs that a shortlist would miss.

  Args:
    bound: the decoder with its parameters.
    batches: as for `decode_dataset`; rows from `num_valid` on do not count.
    tokens: int [N, T], an output per input, 0 after its end: those of a full
      decode (`DecodedDataset.tokens`) or references.
    readout: says how the shortlist is made.
    first_exit_layer: the exit layer that makes it, 1..L: the first one that the
      exit rule checks.

  Returns:
    Misses over all tokens of the outputs.

  Raises:
    ValueError: if sizes do not fit, inputs and outputs are not equally many, or
      there is no token.
  """
  tokens = np.asarray(tokens, dtype=np.int32)
  checks.check_whole(
    first_exit_layer, 'first_exit_layer', low=1, high=bound.num_layers
  )
  readout = readout.check(bound.decoder, len(tokens), tokens.shape[1])
  missed = kept = np.zeros(bound.num_layers)
  num_tokens = 0
  for inputs, outputs, counts in teacher_forcing.with_outputs(batches, tokens):
    num_tokens += int(counts.sum())
    sums = _sums(
      bound,
      inputs,
      outputs,
      counts,
      first_exit_layer - 1,
      readout=readout,
    )
    missed, kept = missed + np.asarray(sums[0]), kept + np.asarray(sums[1])
  if not num_tokens:
    raise ValueError('the outputs hold no tokens; give decoded ones')
  before = np.arange(bound.num_layers) < first_exit_layer - 1
  return ShortlistMisses(
    miss_rates=np.where(before, np.nan, missed / num_tokens),
    kept_probabilities=np.where(before, np.nan, kept / num_tokens),
    num_tokens=num_tokens,
  )


@functools.partial(jax.jit, static_argnames='readout')
def _sums(
  bound, inputs, outputs, counts, first, *, readout
) -> tuple[Array, Array]:
  """Returns sums over tokens, float32 [L]: misses and kept probabilities."""
  blocks = jnp.zeros((*outputs.shape, readout.num_blocks), jnp.int32)

  def look(blocks, layer, before, hidden):
    del before
    logits = bound.logits(hidden)
    blocks = lax.cond(
      layer == first, lambda _: readout.best_blocks(logits), lambda b: b, blocks
    )
    best = first_best(logits)[..., None]
    is_missed = (blocks != best // readout.block_size).all(axis=-1)
    kept = jax.nn.logsumexp(readout.keep(logits, blocks), axis=-1)
    kept = jnp.exp(kept - jax.nn.logsumexp(logits, axis=-1))
    sums = tuple(
      jnp.where(counts, values, 0.0).sum() for values in (is_missed, kept)
    )
    return blocks, sums

  _, _, sums = teacher_forcing.run_layers(bound, inputs, outputs, look, blocks)
  return sums

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
    bound: the decoder with its parameters, bound to a depth loop that traces
      layers, such as `decoding.WhileDepthLoop()`.
    batches: as for `decode_dataset`; rows from `num_valid` on do not count.
    tokens: int [N, T], an output per input, 0 after its end: those of a full
      decode (`DecodedDataset.tokens`) or references.
    readout: says how the shortlist is made.
    first_exit_layer: the exit layer that makes it, 1..L: the first one that the
      exit rule checks.

  Returns:
    Misses over all tokens of the outputs.

  Raises:
    ValueError: if sizes do not fit, inputs and outputs are not equally many,
      there is no token, or the depth loop does not trace layers.
  """
  if not bound.depth_loop.traced_layers:
    raise ValueError(
      f'{type(bound.depth_loop).__name__} has its layers apart, and all are '
      'gone through in one loop here; bind the decoder to '
      'decoding.WhileDepthLoop()'
    )
  tokens = np.asarray(tokens, dtype=np.int32)
  checks.check_whole(
    first_exit_layer, 'first_exit_layer', low=1, high=bound.num_layers
  )
  readout = readout.check(bound.decoder, len(tokens), tokens.shape[1])
  missed = kept = np.zeros(bound.num_layers)
  num_tokens = 0
  for inputs, outputs in _with_outputs(batches, tokens):
    # An output ends at its last token that is no padding.
    counts = np.flip(np.cumsum(np.flip(outputs, 1), axis=1), 1) > 0
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


def _with_outputs(batches: Iterable[Batch], tokens: np.ndarray):
  """Yields inputs [B, S] and their outputs [B, T], 0 in rows that only fill."""
  done = 0
  for batch in batches:
    inputs = np.asarray(batch['encoder_input_tokens'], dtype=np.int32)
    count = int(batch.get('num_valid', len(inputs)))
    given = tokens[done : done + count]
    outputs = np.zeros((len(inputs), tokens.shape[1]), np.int32)
    outputs[: len(given)] = given
    done += count
    yield inputs, outputs
  if done != len(tokens):
    raise ValueError(
      f'the batches hold {done} inputs and tokens {len(tokens)} outputs; give '
      'one output per input, in the same order'
    )


@functools.partial(jax.jit, static_argnames='readout')
def _sums(
  bound, inputs, outputs, counts, first, *, readout
) -> tuple[Array, Array]:
  """Returns sums over tokens, float32 [L]: misses and kept probabilities."""
  positions = jnp.arange(outputs.shape[1])
  cache = bound.start(bound.encode(inputs), outputs.shape[1])
  shifted = jnp.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
  hidden = bound.embed(shifted, positions)
  blocks = jnp.zeros((*outputs.shape, readout.num_blocks), jnp.int32)

  def run_layer(carry, layer):
    hidden, cache, blocks = carry
    cache = bound.fill_layer(layer, hidden, positions, cache)
    hidden = bound.attend(layer, hidden, positions, cache)
    hidden = bound.feed_forward(layer, hidden)
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
    return (hidden, cache, blocks), sums

  layers = jnp.arange(bound.num_layers)
  _, sums = lax.scan(run_layer, (hidden, cache, blocks), layers)
  return sums

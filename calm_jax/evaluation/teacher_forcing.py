"""Given outputs run through all layers, all positions at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from calm_jax import interfaces
from calm_jax.array_types import Array, PyTree
from calm_jax.evaluation.decode_dataset import Batch

# From what is carried on, the layer, the states [B, T, D] that enter it and
# those that leave it, to what is carried on and what is kept of the layer.
Look = Callable[[Any, Array | int, Array, Array], tuple[Any, PyTree]]


def with_outputs(
  batches: Iterable[Batch], tokens: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields the inputs of batches with the outputs that belong to them.

  Args:
    batches: as for `decode_dataset`; rows from `num_valid` on do not count.
    tokens: int32 [N, T], an output per input, 0 after its end.

  Yields:
    Inputs int32 [B, S]; outputs int32 [B, T], 0 in rows that do not count; bool
    [B, T], the positions up to the last token that is no padding.

  Raises:
    ValueError: if inputs and outputs are not equally many.
  """
  done = 0
  for batch in batches:
    inputs = np.asarray(batch['encoder_input_tokens'], dtype=np.int32)
    count = int(batch.get('num_valid', len(inputs)))
    given = tokens[done : done + count]
    outputs = np.zeros((len(inputs), tokens.shape[1]), np.int32)
    outputs[: len(given)] = given
    done += count
    counts = np.flip(np.cumsum(np.flip(outputs, 1), axis=1), 1) > 0
    yield inputs, outputs, counts
  if done != len(tokens):
    raise ValueError(
      f'the batches hold {done} inputs and tokens {len(tokens)} outputs; give '
      'one output per input, in the same order'
    )


def run_layers(
  bound: interfaces.BoundDecoder,
  inputs: Array,
  outputs: Array,
  look: Look,
  carry: Any,
) -> tuple[Array, Any, PyTree]:
  """Runs all layers over outputs, teacher forced, and looks after each.

  Args:
    bound: the decoder with its parameters.
    inputs: int [B, S].
    outputs: int [B, T].
    look: what to do after a layer.
    carry: what its first call gets.

  Returns:
    The states [B, T, D] after the last layer, what the last call carried on,
    and what was kept of all layers, [L, ...].
  """
  return run_encoded(bound, bound.encode(inputs), outputs, look, carry)


def run_encoded(
  bound: interfaces.BoundDecoder,
  encoded: PyTree,
  outputs: Array,
  look: Look,
  carry: Any,
) -> tuple[Array, Any, PyTree]:
  """The same, from sources that are encoded already.

  Args:
    bound: see `run_layers`.
    encoded: of `bound.encode`, or what stands for it.
    outputs: see `run_layers`.
    look: see `run_layers`.
    carry: see `run_layers`.
  """
  positions = jnp.arange(outputs.shape[1])
  cache = bound.start(encoded, outputs.shape[1])
  shifted = jnp.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
  hidden = bound.embed(shifted, positions)

  def run_layer(state, layer):
    before, cache, carry = state
    cache = bound.fill_layer(layer, before, positions, cache)
    hidden = bound.attend(layer, before, positions, cache)
    hidden = bound.feed_forward(layer, hidden)
    carry, kept = look(carry, layer, before, hidden)
    return (hidden, cache, carry), kept

  state, kept = bound.over_layers(run_layer, (hidden, cache, carry))
  hidden, _, carry = state
  return hidden, carry, kept

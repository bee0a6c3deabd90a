"""What pruning the context by gates costs, beside as many of the last tokens.

One pass over the batches, teacher forced with what the full model says, under
hard gates, as a decode has them.
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
from calm_jax.context_gates import ContextGates
from calm_jax.model import relative_positions
from calm_jax.training import context_losses, context_states

# Falling, as a calibration tries them; infinity is the whole context.
CONTEXT_SHIFTS = (float('inf'), 2.0, 1.0, 0.5, 0.0, -0.5, -1.0)


@dataclasses.dataclass(frozen=True)
class ContextMeasurement:
  """Gates on a set of requests; see `records.ContextGateEvaluation`.

  Attributes:
    num_tokens: of outputs.
    longest: tokens of the longest output.
    shifts: what is lost at falling shifts.
  """

  num_tokens: int
  longest: int
  shifts: tuple[records.ContextShare, ...]


def evaluate_context_gates(
  config: model.T5Config,
  params: Params,
  gates: ContextGates,
  batches: Iterable[Mapping[str, Any]],
  *,
  shifts: Sequence[float] = CONTEXT_SHIFTS,
) -> ContextMeasurement:
  """Returns what gates cost on a whole set, and what a window does.

  Args:
    config: the model.
    params: its parameters.
    gates: the gates.
    batches: dicts of NumPy arrays with T5X's keys; targets are what the full
      model says.
    shifts: `beta_shift` of `decoding.PrunedContext`.

  Raises:
    ValueError: if the gates are of another model's shape, a batch is bad, or
      all hold no target token.
  """
  gates = gates.check(model.as_layered_decoder(config))
  look, found = _make_look(config), []
  array = jnp.asarray(shifts, jnp.float32)
  for batch in batches:
    batch = context_losses.check_context_batch(batch, config)
    found.append(jax.device_get(look(params, gates, batch, array)))
  if not sum(float(tokens) for tokens, *_ in found) > 0:
    raise ValueError(
      f'the {len(found)} validation batches of the context gates hold no '
      'target token: is the split empty, or the iterator used up?'
    )
  tokens, longest, pairs, most, sums = zip(*found, strict=True)
  tokens, pairs, sums = (
    np.sum(parts, axis=0, dtype=np.float64) for parts in (tokens, pairs, sums)
  )
  return ContextMeasurement(
    num_tokens=int(tokens),
    longest=int(max(longest)),
    shifts=tuple(
      _share(shift, int(held), tokens, pairs, row)
      for shift, held, row in zip(
        shifts, np.max(most, axis=0), sums, strict=True
      )
    ),
  )


def _share(
  shift: float, most: int, tokens: float, pairs: float, sums: np.ndarray
) -> records.ContextShare:
  """Returns rates of one shift, of what `_make_look` sums."""
  kept, apart, right, window_apart, window_right = map(float, sums)
  return records.ContextShare(
    beta_shift=None if shift == np.inf else float(shift),
    # Outputs of one token have no past.
    kept=kept / pairs if pairs else 1.0,
    most=most,
    differing=1.0 - right / tokens,
    divergence=apart / tokens,
    window_differing=1.0 - window_right / tokens,
    window_divergence=window_apart / tokens,
  )


@functools.lru_cache(maxsize=8)
def _make_look(config: model.T5Config) -> Callable[..., Any]:
  """Returns the jitted `(params, gates, batch, shifts)` to numbers of a batch.

  Target tokens [], those of the longest output [], past positions over layers
  []; per shift the most that were held [N], and [N, 5]: positions kept,
  divergence and tokens that agree; these two again for a window of the last
  tokens that is as large, for every token and layer.
  """

  def look(params, gates, batch, shifts):
    examples = context_losses.context_examples(config, params, batch)
    layers, length = config.num_decoder_layers, examples.weights.shape[1]
    places = jnp.arange(length)
    distance = places[:, None] - places

    def apart(states):
      logits = model.output_logits(config, params, states[-1])
      return examples.apart(logits)

    def at(shift):
      states, keep = context_states.gated_states(
        config,
        params,
        gates,
        batch,
        lambda scores: (scores + shift > 0).astype(jnp.float32),
      )
      past = jnp.where(examples.pairs, keep, 0.0).sum(axis=-1)
      size = past + 1.0

      def last_ones(layer, _):
        return relative_positions.mask_to_bias(
          distance < size[layer][..., None]
        )

      window = context_states.biased_states(config, params, batch, last_ones)
      held = jnp.where(examples.weights > 0, size, 0.0).max()
      return held, jnp.stack([past.sum(), *apart(states), *apart(window)])

    # A loop, so that the logits of one shift are in memory at a time.
    most, sums = jax.lax.map(at, shifts)
    return (
      examples.weights.sum(),
      examples.weights.sum(axis=1).max(),
      examples.pairs.sum() * layers,
      most,
      sums,
    )

  return jax.jit(look)

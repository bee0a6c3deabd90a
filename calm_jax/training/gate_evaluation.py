"""How early a gate lets tokens go, beside other measures, on held-out tokens.

One pass over the batches; the full model's states, teacher forced.
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
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exits import Gate
from calm_jax.training import classifier_evaluation as counting
from calm_jax.training import exit_depths, gate_states
from calm_jax.training import step as step_lib

# Shares of tokens that may differ from the last layer's.
ALLOWED = (0.01, 0.02, 0.05)
# What `exits.QuantileExit` compares, strictly, with its threshold.
_ACCUMULATED = 'gate, accumulated'


@dataclasses.dataclass(frozen=True)
class GateMeasurement:
  """A gate and other measures on a set of tokens.

  Attributes:
    num_tokens: N, target tokens.
    layers: rates of the gate at exits 1..L-1, at confidence 0.5.
    depths: mean exit layers of 'gate', 'gate, accumulated' (as `QuantileExit`
      reads it) and 'softmax margin', where few tokens disagree. Thresholds are
      chosen on these very tokens.
    first_agreeing: mean of the first layer that says the last one's token.
    settled: mean of the first layer from which on all say it.
  """

  num_tokens: int
  layers: tuple[records.ClassifierLayer, ...]
  depths: tuple[records.MeasureDepth, ...]
  first_agreeing: float
  settled: float


def evaluate_gate(
  config: model.T5Config,
  params: Params,
  gate: Gate,
  batches: Iterable[Mapping[str, Any]],
  *,
  allowed: Sequence[float] = ALLOWED,
  adapters: AdaptsExits | None = None,
) -> GateMeasurement:
  """Returns how a gate does over a whole set, and what else could be done.

  Args:
    config: the model.
    params: its parameters.
    gate: the gate.
    batches: dicts of NumPy arrays with T5X's keys.
    allowed: shares of tokens that may differ from the last layer's, in [0, 1].
    adapters: what exits before the last are read through, and the margin is of;
      None for as they are.

  Raises:
    ValueError: if the gate or adapters are of another model's shape, a batch is
      bad, or all hold no target token.
  """
  gate = check_gate(config, gate)
  if adapters is not None:
    adapters = adapters.check(model.as_layered_decoder(config))
  look = _make_look(config)
  parts, counts = [], []
  for batch in batches:
    batch = step_lib.check_batch(batch, config)
    found, count = jax.device_get(look(params, gate, batch, adapters))
    of_targets = np.asarray(batch['decoder_loss_weights']) > 0
    parts.append([array[:, of_targets] for array in found])
    counts.append(count)
  if not sum(part.num_tokens for part in counts) > 0:
    raise ValueError(
      f'the {len(counts)} validation batches of the gate hold no target token: '
      'is the split empty, or the iterator used up?'
    )
  confidences, margins, consistent = (
    np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)
  )
  staying = np.cumprod(1.0 - confidences, axis=0, dtype=np.float32)
  measures = {
    'gate': confidences,
    _ACCUMULATED: 1.0 - staying,
    'softmax margin': margins,
  }
  depths = [
    exit_depths.exit_depths(
      name, values, consistent, allowed, strictly=name == _ACCUMULATED
    )
    for name, values in measures.items()
  ]
  first, settled = exit_depths.oracle_layers(consistent)
  total = jax.tree.map(
    lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *counts
  )
  return GateMeasurement(
    num_tokens=consistent.shape[1],
    layers=total.layers(),
    depths=tuple(depth for some in depths for depth in some),
    first_agreeing=first,
    settled=settled,
  )


def check_gate(config: model.T5Config, gate: Gate) -> Gate:
  """Returns the gate in float32; raises ValueError for another model's."""
  return gate.check(model.as_layered_decoder(config), 1, 1)


@functools.lru_cache(maxsize=8)
def _make_look(config: model.T5Config) -> Callable[..., Any]:
  """Returns the jitted `(params, gate, batch, adapters) -> (arrays, counts)`.

  Confidences, margins and whether layers agree, [L-1, B, T] each.
  """

  def look(params, gate, batch, adapters):
    examples = gate_states.exact_states(
      config, params, batch, adapters=adapters
    )
    scores = examples.scores(gate)
    weights = (examples.weights > 0).astype(jnp.float32)
    counts = counting.count_decisions(scores, examples.consistent, weights)
    # The second of the features is the margin.
    margins = examples.features[..., 1]
    return (jax.nn.sigmoid(scores), margins, examples.consistent), counts

  return jax.jit(look)

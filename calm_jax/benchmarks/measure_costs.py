"""What a token costs by the ledger, from the means that a loss table holds.

A table says how many layers a token used and how many were run for it; how many
checks that takes follows from the policy. Prices are those of
`costs.decode_cost`, in arithmetic, and the unit is a decoder layer with its own
keys and values.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from calm_jax import costs, model, records
from calm_jax.interfaces import Work

# They multiply by the output matrix at every check.
_READ_LOGITS = ('SoftmaxMargin', 'SoftmaxMaximum')
_READ_STATES = ('Gate', 'Classifier', 'StateSimilarity')
# Arrays of a measure that a state, or what came of it, is multiplied by.
_PRODUCTS = ('state', 'previous', 'logits', 'out', 'kernel')


@dataclasses.dataclass(frozen=True)
class Prices:
  """FLOPs of the parts of a token.

  Attributes:
    layer: of a layer, without the projections of its keys and values.
    fill: of these.
    head: of the output matrix.
  """

  layer: float
  fill: float
  head: float

  @classmethod
  def of(
    cls, config: model.T5Config, *, max_length: int, source_length: int
  ) -> Self:
    """Returns the prices in a decode of these lengths."""

    def flops(**done):
      ledger = Work.none((1, max_length))
      first = np.eye(1, max_length, dtype=int)
      ledger = ledger.plus(
        checks=first,
        outputs=first * config.vocab_size,
        **{name: first * number for name, number in done.items()},
      )
      return costs.decode_cost(config, ledger, source_length=source_length)

    base = flops()
    return cls(
      layer=flops(attention=1, feed_forward=1).total_flops - base.total_flops,
      fill=flops(projections=1).total_flops - base.total_flops,
      head=base.flops['head'],
    )


def costs_of(
  table: records.LossTable, prices: Prices, num_layers: int
) -> np.ndarray:
  """Returns the mean cost of a token at each setting, in layers [J].

  What a gate or a classifier multiplies by is counted at every layer used, the
  last one included, where it is not asked: a little too much.

  Args:
    table: a loss table; NaN where it was not decoded.
    prices: of the model, at the table's lengths.
    num_layers: L.

  Raises:
    ValueError: if the table does not say how much was run, or its policy not
      how many checks it makes.
  """
  policy = table.fingerprint['policy']
  run, used = table.mean_layers_run, table.mean_exit_layers
  if np.isnan(run[table.computed]).any():
    raise ValueError(
      'it does not say how many layers were run: calibrate anew, or leave out '
      '--costs'
    )
  fill = policy['cache_fill']['type']
  projected = {'CatchUp': run, 'ProjectExitState': num_layers}.get(fill)
  plain = policy['layer_plan']['type'] == 'EveryLayer'
  later = {'verification', 'source_plan', 'encoder_exit'}
  plain &= not later & {*policy}
  if projected is None or not plain:
    raise ValueError(_refusal(policy, 'layers and projections'))
  if policy['readout']['type'] != 'FullVocabulary':
    raise ValueError(_refusal(policy, 'logits'))
  checks, own = _checks(policy['exit_rule'], policy)
  flops = run * prices.layer + projected * prices.fill
  flops += prices.head * (used if checks else 1) + own * used
  return flops / (prices.layer + prices.fill)


def full_cost(prices: Prices, num_layers: int) -> float:
  """Returns the cost of a token of the full model, without checks."""
  return num_layers + prices.head / (prices.layer + prices.fill)


def _checks(rule: Mapping[str, Any], policy: Mapping) -> tuple[bool, float]:
  """Returns whether a check reads logits, and FLOPs of the measure's own."""
  measure = rule.get('measure') or {}
  kind = measure.get('type')
  logits = kind in _READ_LOGITS or measure.get('logits') is not None
  if (
    rule['type'] != 'ConfidenceExit' or kind not in _READ_LOGITS + _READ_STATES
  ):
    raise ValueError(_refusal(policy, 'checks'))
  everywhere = (rule['minimum_exit_layer'], rule['interval']) == (1, 1)
  if not everywhere and kind != 'StateSimilarity':
    raise ValueError(_refusal(policy, 'checks'))
  return logits, 2.0 * sum(
    math.prod(_shape(measure[name])[1:])
    for name in _PRODUCTS
    if measure.get(name) is not None
  )


def _shape(described: str) -> list[int]:
  """Returns the shape of a described array, of one classifier [1, D].

  >>> _shape('float32[11, 512, 64] sha256 d6e7d4ee5d770b49')
  [11, 512, 64]
  """
  inside = described[described.index('[') + 1 : described.index(']')]
  sizes = [int(size) for size in inside.split(',') if size.strip()]
  return sizes if len(sizes) > 1 else [1, *sizes]


def _refusal(policy: Mapping[str, Any], what: str) -> str:
  types = [
    part['type']
    for part in (policy['exit_rule'], policy['cache_fill'], policy['readout'])
  ]
  for slot in ('source_plan', 'encoder_exit'):
    types += [policy[slot]['type']] if slot in policy else []
  return (
    f'means do not tell how many {what} a policy of {", ".join(types)} makes; '
    'leave out --costs, or measure it with calm_jax.benchmarks.arena'
  )

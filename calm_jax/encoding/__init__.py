"""The encoder layer by layer: rows leave one by one, by any exit rule.

`encode` runs a `LayeredEncoder`, whose rows stop by the same rules as tokens
do, on the mean state of a row; a layer loop says how the program walks the
layers. `calm_jax.decoding` decodes from what it returns; `classify` says a
class by the head of the layer that a row leaves at, and `replay` where rows
would leave, from one pass over all layers.
"""

from calm_jax.encoding.classifying import ClassifyResult, classify
from calm_jax.encoding.compacted_layers import CompactedLayers
from calm_jax.encoding.encoding import EncodeResult, encode
from calm_jax.encoding.layer_loops import (
  LayerLoop,
  UnrolledLayers,
  WhileLayers,
)
from calm_jax.encoding.replaying import (
  AllLayers,
  all_layers,
  layers_from,
  replay,
)
from calm_jax.encoding.source_rows import Heads

__all__ = [
  'AllLayers',
  'ClassifyResult',
  'CompactedLayers',
  'EncodeResult',
  'Heads',
  'LayerLoop',
  'UnrolledLayers',
  'WhileLayers',
  'all_layers',
  'classify',
  'encode',
  'layers_from',
  'replay',
]

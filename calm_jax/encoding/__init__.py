"""The encoder layer by layer: rows leave one by one, by any exit rule.

`encode` runs a `LayeredEncoder`, whose rows stop by the same rules as tokens
do, on the mean state of a row; a layer loop says how the program walks the
layers. `calm_jax.decoding` decodes from what it returns.
"""

from calm_jax.encoding.compacted_layers import CompactedLayers
from calm_jax.encoding.encoding import EncodeResult, encode
from calm_jax.encoding.layer_loops import (
  LayerLoop,
  UnrolledLayers,
  WhileLayers,
)
from calm_jax.encoding.source_rows import Heads

__all__ = [
  'CompactedLayers',
  'EncodeResult',
  'Heads',
  'LayerLoop',
  'UnrolledLayers',
  'WhileLayers',
  'encode',
]

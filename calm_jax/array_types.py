"""Array aliases and THE table of dimension letters.

The same letters stand in annotations, comments and einsums everywhere:

  B  batch (rows)                 L  decoder layers
  P  positions processed at once  D  embed (residual stream width)
  T  target length                H  attention heads
  S  source length                K  head dimension
  V  vocabulary                   F  feed-forward width
  C  candidates (V or a subset)   N  examples,  J  settings
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]

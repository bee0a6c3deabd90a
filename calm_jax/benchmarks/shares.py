"""Where the time of a decode goes, in shares."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shares:
  """Shares of the time of a decode without its start; together 1.

  What noise makes negative stands as it was measured.

  Attributes:
    checks: logits and confidences after the layers, beyond the one reading that
      chooses the token.
    fill: K/V projections of self-attention and writing them.
    head: that one reading: output matrix and choice of the token.
    layers: everything else: attention, FFN, and the loops' own work.
  """

  checks: float
  fill: float
  head: float
  layers: float

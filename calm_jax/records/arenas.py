"""The rows of the arena: every way of decoding on the inputs of one run."""

import dataclasses
import math

from calm_jax.records.promises import PromiseOutcome


@dataclasses.dataclass(frozen=True)
class ArenaClock:
  """What one way of decoding takes at one batch size.

  Attributes:
    batch_size: B.
    depth_loop: the fastest one, '-' for other programs.
    milliseconds_per_token: wall clock of a step of the token loop, with its
      share of what is done once per batch, over B.
    speed_up: over our fastest full decode of the same batches.
    mean_layers: layers run per token, where they depend on who shares the
      batch; NaN elsewhere.
  """

  batch_size: int
  depth_loop: str
  milliseconds_per_token: float
  speed_up: float
  mean_layers: float = math.nan


@dataclasses.dataclass(frozen=True)
class ArenaRow:
  """One way of decoding, on the inputs of one run.

  Attributes:
    run: the run, in words.
    name: the way of decoding.
    kind: 'full', 'certified', 'uncertified', 'lossless' or 'other program'.
    outcomes: what is promised, and what came of it on these inputs.
    error_rate: how likely the promise may be broken; NaN without one.
    distance: mean textual loss against the full model's outputs.
    quality: mean similarity to the references, in points of 100.
    metric: of both.
    mean_layers: layers in which a token's position was run, earlier positions
      that caught up included, per token; NaN for other programs but T5X's CALM.
    cost: FLOPs of the decoder by the ledger over those of the full model; NaN
      for other programs.
    clocks: one per batch size.
    same_as: what of this library should say the same, decoded one by one; ''
      where nothing should.
    same_outputs: share of the inputs for which it does, token by token; NaN
      where nothing should.
  """

  run: str
  name: str
  kind: str
  outcomes: tuple[PromiseOutcome, ...]
  error_rate: float
  distance: float
  quality: float
  metric: str
  mean_layers: float
  cost: float
  clocks: tuple[ArenaClock, ...]
  same_as: str = ''
  same_outputs: float = math.nan

  @property
  def kept(self) -> bool | None:
    """Whether all that is promised held here; None if nothing is promised."""
    if self.kind == 'lossless':
      return self.distance == 0
    if not self.outcomes:
      return None
    return all(one.kept is not False for one in self.outcomes)

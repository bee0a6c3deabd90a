"""The rows of adaptive systems beside each other: one per setting."""

import dataclasses

from calm_jax.records.arenas import ArenaClock
from calm_jax.records.promises import PromiseOutcome

# What others are held against.
FULL_SYSTEM = 'full model'
ORACLE_SYSTEM = 'oracle over layers'


@dataclasses.dataclass(frozen=True)
class SystemRow:
  """One setting of one system, on the inputs of one model.

  Attributes:
    run: the data, in words.
    model: the checkpoint, in words.
    system: the system; `FULL_SYSTEM` or `ORACLE_SYSTEM` for what others are
      held against.
    setting: in words; '' where there is none.
    policy: a digest of the policy, '' for oracles; a row of another is none of
      this setting.
    outcomes: what a certificate promises of it, and what came of that here.
    error_rate: how likely the promise may be broken; NaN without one.
    distance: mean textual loss against the model's own full decode.
    quality: mean similarity to the references, in points of 100.
    metric: of both.
    mean_layers: layers run per token, earlier positions that caught up
      included.
    flops: arithmetic of the decoder per token by the ledger, without what is
      done once per request, over that of the full decode.
    bytes: memory traffic likewise, of a row alone; NaN for oracles.
    clocks: one per batch size at which it was timed.
  """

  run: str
  model: str
  system: str
  setting: str
  policy: str
  outcomes: tuple[PromiseOutcome, ...]
  error_rate: float
  distance: float
  quality: float
  metric: str
  mean_layers: float
  flops: float
  bytes: float
  clocks: tuple[ArenaClock, ...] = ()

  @property
  def key(self) -> tuple[str, str, str]:
    """What tells rows of one model apart."""
    return self.system, self.setting, self.promised

  @property
  def promised(self) -> str:
    """What is promised of it, '' for nothing."""
    return ' and '.join(
      f'{one.loss} {one.tolerance:g}' for one in self.outcomes
    )

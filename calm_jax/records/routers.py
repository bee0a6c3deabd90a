"""How a router does: what its depths lose, beside the same depth for all."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class RoutedDepths:
  """Requests at one threshold of a router, beside a uniform depth.

  The uniform depth is the same mean for everybody: of two neighbouring depths
  each request has one by chance.

  Attributes:
    threshold: of `RoutedExit`.
    mean_layers: of the requests, in 1..L.
    differing: mean share of a request's tokens that are not the full model's.
    kept: share of requests that keep within the slack, at this depth and at all
      deeper ones.
    uniform_differing: such a share where everybody has `mean_layers`.
    uniform_kept: likewise.
  """

  threshold: float
  mean_layers: float
  differing: float
  kept: float
  uniform_differing: float
  uniform_kept: float


@dataclasses.dataclass(frozen=True)
class RouterEvaluation:
  """A router, measured on one split of what the full model says.

  Teacher forced with that: behind the first token that differs a decode may say
  something else.

  Attributes:
    task: the task's name.
    split: the split.
    num_requests: N.
    num_tokens: of their outputs.
    num_layers: L, the decoder layers.
    slack: the share of tokens that may differ where a request is kept.
    steps: how long it was trained.
    depths: at falling thresholds, the first one 1.
    differing: mean share of tokens that differ at depths 1..L.
    kept: share of requests that depths 1..L keep.
    needed_layers: mean of the smallest depths that keep the requests: those of
      a router that is always right.
    context: how all this was obtained.
    format_version: of this schema.
  """

  task: str
  split: str
  num_requests: int
  num_tokens: int
  num_layers: int
  slack: float
  steps: int
  depths: tuple[RoutedDepths, ...]
  differing: tuple[float, ...]
  kept: tuple[float, ...]
  needed_layers: float
  context: RunContext
  format_version: int = FORMAT_VERSION

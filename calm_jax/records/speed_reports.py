"""A speed report: how fast ways of decoding are, beside what bounds them."""

import dataclasses

from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class SpeedRow:
  """One way of decoding one shape.

  Attributes:
    name: what is done: full depth, depths forced, with checks or without.
    shape: the model, for example 't5_v1_1_small'.
    batch_size: B.
    depth_loop: 'while' or 'unrolled'.
    cache_fill: 'eager', 'deferred' or 'exact'.
    mean_exit_layer: layers per token, 1..L.
    milliseconds_per_step: median wall clock of a decode without its start, over
      its steps, one token for each row.
    start_milliseconds: median wall clock of what happens once: the encoder, and
      keys and values of the source.
    parts: what a decode of this depth takes by the parts of full depth at the
      same batch size: head and fill of all layers, and a share of the rest; NaN
      where there are checks.
    bound: milliseconds per step that memory traffic alone would take at the
      bandwidth measured in the same run.
    speed_up: of the fastest full decode of the same shape and batch over this.
    ceiling: the same ratio of their memory traffic.
    compile_seconds: of everything this way of decoding compiled.
  """

  name: str
  shape: str
  batch_size: int
  depth_loop: str
  cache_fill: str
  mean_exit_layer: float
  milliseconds_per_step: float
  start_milliseconds: float
  parts: float
  bound: float
  speed_up: float
  ceiling: float
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class SpeedReport:
  """One run of `calm_jax.benchmarks.decode_speed`.

  Attributes:
    bandwidth: gigabytes per second that a matrix-vector product reads.
    source_length: S.
    target_length: T, decoded to the end.
    num_repeats: turns; medians of them are reported.
    rows: what was measured.
    context: how all this was obtained.
    format_version: of this schema.
  """

  bandwidth: float
  source_length: int
  target_length: int
  num_repeats: int
  rows: tuple[SpeedRow, ...]
  context: RunContext
  format_version: int = FORMAT_VERSION

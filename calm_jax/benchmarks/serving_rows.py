"""Serving a stream of requests, turn by turn, and the rows that makes."""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np

from calm_jax import checks, decoding, interfaces
from calm_jax.array_types import PyTree
from calm_jax.benchmarks.serving_clock import TokenClock
from calm_jax.benchmarks.serving_ways import Way
from calm_jax.records import ServingRow


@dataclasses.dataclass(frozen=True)
class Stream:
  """Requests that are served.

  Attributes:
    sources: token ids of the inputs, EOS included, in their order.
    source_length: S, what they are padded to.
    max_length: T, the most tokens of an output.
  """

  sources: Sequence[np.ndarray]
  source_length: int
  max_length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
  """One turn.

  Attributes:
    seconds: the wall clock.
    waits: seconds that tokens waited, float64 [n].
    exit_layers: int32 [tokens], the layers that each token used.
  """

  seconds: float
  waits: np.ndarray
  exit_layers: np.ndarray


def serve(
  bound: interfaces.BoundDecoder, way: Way, stream: Stream, *, num_slots: int
) -> Served:
  """Serves a stream once.

  Args:
    bound: the decoder with its parameters; of the way's depth loop.
    way: how.
    stream: what.
    num_slots: B.
  """
  clock, layers = TokenClock(), []
  start = time.perf_counter()
  for _, result in decoding.decode_queue(
    bound,
    stream.sources,
    num_slots=num_slots,
    source_length=stream.source_length,
    max_length=stream.max_length,
    steps=way.steps,
    refill_at=way.refill_at,
    policy=way.policy,
    watch=clock,
  ):
    layers.append(result.exit_layers[result.exit_layers > 0])
  seconds = time.perf_counter() - start
  return Served(seconds, clock.waits, np.concatenate(layers))


def measure(
  decoder: interfaces.LayeredDecoder,
  params: PyTree,
  stream: Stream,
  compared: Sequence[Way],
  *,
  run: str,
  batch_sizes: Sequence[int],
  num_repeats: int,
) -> list[ServingRow]:
  """Measures every way in every number of slots.

  Args:
    decoder: the model.
    params: its parameters.
    stream: the requests.
    compared: the ways, the one that others are held against first.
    run: what rows call it.
    batch_sizes: numbers of slots.
    num_repeats: turns; medians are reported.

  Raises:
    ValueError: for bad numbers, or fewer requests than slots.
  """
  checks.check_whole(num_repeats, 'num_repeats', low=1)
  for size in batch_sizes:
    checks.check_whole(size, 'batch_sizes', low=1, high=len(stream.sources))
  bounds = {
    way.depth_loop: decoding.bind(decoder, params, depth_loop=way.depth_loop)
    for way in compared
  }
  rows = []
  for size in batch_sizes:
    turns: list[list[Served]] = [[] for _ in compared]
    # The first turn compiles, and is dropped.
    for _ in range(num_repeats + 1):
      for way, found in zip(compared, turns, strict=True):
        bound = bounds[way.depth_loop]
        found.append(serve(bound, way, stream, num_slots=size))
    for way, found in zip(compared, turns, strict=True):
      rows.append(_row(way, found[1:], stream, run, size, decoder.num_layers))
  return rows


def _row(
  way: Way,
  turns: Sequence[Served],
  stream: Stream,
  run: str,
  size: int,
  num_layers: int,
) -> ServingRow:
  """Returns the medians of some turns of one way."""

  def milliseconds(of_turn):
    waits = (turn.waits if len(turn.waits) else np.zeros(1) for turn in turns)
    return 1e3 * statistics.median(float(of_turn(one)) for one in waits)

  layers = turns[0].exit_layers
  return ServingRow(
    run=run,
    way=way.name,
    batch_size=size,
    steps=way.steps,
    num_requests=len(stream.sources),
    num_tokens=len(layers),
    mean_exit_layer=float(layers.mean()),
    num_layers=num_layers,
    tokens_per_second=len(layers)
    / statistics.median(turn.seconds for turn in turns),
    wait_mean=milliseconds(np.mean),
    wait_median=milliseconds(np.median),
    wait_99=milliseconds(lambda waits: np.percentile(waits, 99)),
  )

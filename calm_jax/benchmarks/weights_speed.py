"""Measures what 8-bit weights are worth on the clock, exits beside them.

  python -m calm_jax.benchmarks.weights_speed --shapes=t5_v1_1_small \
    --batch_sizes=1,16 --output=weights.json

Random weights, random sources, greedy, no end of sequence: every decode has the
same number of steps. Whole requests, encoder included, all of one shape and
batch in turns: the model in float, in 8 bits (with its encoder, too) and in
bfloat16 at full depth; in float and 8 bits also at forced depths (a mean of L/4
at batch 1, L/3 in batches), with the fill that is faster there, deferred at
batch 1 and eager in batches; and at the same depths with a margin read after
every layer, in the float model once over an output matrix in 8 bits. With
--peers, Hugging Face's T5 on PyTorch and CTranslate2 in float32 and int8 decode
the same inputs with the same weights, where installed. Needs JAX and nothing
else.

  python -m calm_jax.benchmarks.weights_speed --show=weights.json

prints the table of an earlier run.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from calm_jax import decoding, model
from calm_jax.benchmarks import (
  measured_rows,
  peers,
  weights_requests,
  weights_table,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.weights_table import WeightsRow
from calm_jax.evaluation import stopwatch


def measure(
  shape: str,
  *,
  batch_size: int,
  source_length: int,
  target_length: int,
  dtype: str = 'float32',
  num_repeats: int = 5,
  depth_loops: Sequence[str] | None = None,
  seed: int = 0,
  config: model.T5Config | None = None,
  with_peers: bool = False,
) -> list[WeightsRow]:
  """Measures one shape at one batch size.

  Args:
    shape: a name of `T5Config.named`, or what to call `config`.
    batch_size: B.
    source_length: S.
    target_length: T.
    dtype: of activations, and of matrices in float.
    num_repeats: turns.
    depth_loops: keys of `decoding.DEPTH_LOOPS`; this backend's own if None.
    seed: of weights, sources and depths.
    config: another model than the named one.
    with_peers: whether other programs decode, too, as far as installed.

  Raises:
    ValueError: for bad names or sizes, or a peer that ends early.
  """
  depth_loops = decoding.check_depth_loops(depth_loops or [_own_depth_loop()])
  config = config or model.T5Config.named(shape, dtype=dtype)
  params = model.init_params(config, jax.random.key(seed))
  inputs = np.random.default_rng(seed).integers(
    2, config.vocab_size, (batch_size, source_length), dtype=np.int32
  )
  requests = []
  # First, so that a peer that fails does so before anything is compiled.
  if with_peers:
    requests += weights_requests.peer_requests(
      config, params, inputs, target_length
    )
  ways = weights_requests.ways(config, batch_size, target_length, seed=seed)
  for loop in depth_loops:
    requests += weights_requests.own_requests(
      config, params, inputs, ways, loop
    )
  seconds = stopwatch.interleaved_seconds(
    {request: request.run for request in requests}, num_repeats
  )
  milliseconds = {
    request: 1e3 * statistics.median(turns) / target_length
    for request, turns in seconds.items()
  }
  return list(_rows(milliseconds, shape, batch_size))


def _own_depth_loop() -> str:
  """Returns what `DEPTH_LOOPS` calls the depth loop of this backend."""
  own = decoding.default_depth_loop()
  return next(
    name for name, loop in decoding.DEPTH_LOOPS.items() if loop == own
  )


def _rows(milliseconds, shape, batch_size) -> Iterator[WeightsRow]:
  """Yields a row for every request, this library's first."""
  baseline = min(
    taken
    for request, taken in milliseconds.items()
    if request.name == weights_requests.FULL
  )
  peer = next(
    (
      taken
      for request, taken in milliseconds.items()
      if request.name.startswith(peers.CTRANSLATE2_INT8)
    ),
    math.nan,
  )
  for request in sorted(milliseconds, key=lambda one: one.depth_loop == '-'):
    yield WeightsRow(
      shape=shape,
      name=request.name,
      batch_size=batch_size,
      depth_loop=request.depth_loop,
      mean_exit_layer=float(request.mean_exit_layer),
      milliseconds_per_step=milliseconds[request],
      speed_up=baseline / milliseconds[request],
      over_ctranslate2_int8=peer / milliseconds[request],
      megabytes=request.megabytes,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('weights_speed', __doc__)
  add = parser.add
  add('shapes', 't5_v1_1_small', 'models, separated by commas')
  add('batch_sizes', '1', 'rows decoded together, separated by commas')
  add('source_length', 64, 'tokens of a source', type=int)
  add('target_length', 64, 'tokens decoded', type=int)
  add('dtype', 'float32', 'float32 or bfloat16')
  add('depth_loops', None, "depth loops, by commas; the backend's own if none")
  add('num_repeats', 5, 'turns; medians are reported', type=int)
  add('seed', 0, 'of weights, sources and depths', type=int)
  parser.add_argument(
    '--peers', action='store_true', help='other programs too, if installed'
  )
  add('output', None, 'a JSON file to write')
  add('show', None, 'print the table of this JSON file and measure nothing')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  if flags.show:
    measured = measured_rows.read(flags.show, WeightsRow)
    measured_rows.publish(measured, weights_table.table, None)
    return
  rows = []
  try:
    for shape in flags.shapes.split(','):
      for batch_size in map(int, flags.batch_sizes.split(',')):
        print(f'{shape} at batch {batch_size}', file=sys.stderr, flush=True)
        rows += measure(
          shape,
          batch_size=batch_size,
          source_length=flags.source_length,
          target_length=flags.target_length,
          dtype=flags.dtype,
          num_repeats=flags.num_repeats,
          depth_loops=flags.depth_loops and flags.depth_loops.split(','),
          seed=flags.seed,
          with_peers=flags.peers,
        )
  except ValueError as error:
    sys.exit(f'weights_speed: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype=flags.dtype
  )
  measured_rows.publish(measured, weights_table.table, flags.output)


if __name__ == '__main__':
  main()

"""Measures decoding side by side: full depth, forced depths, checks, fills.

  python -m calm_jax.benchmarks.decode_speed --shapes=t5_v1_1_small \
    --batch_sizes=1 --output=speed.json

Random weights, random sources, greedy, no end of sequence: every decode has the
same number of steps. Everything of one shape and batch runs in turns with a
read of memory among them, and medians of the same turns are compared. Depths
are forced (a mean of L/4 at batch 1, L/3 in batches), since random weights exit
nowhere in particular; 'margin checks' are the same depths with the softmax
margin computed after every layer, 'checks of candidates' prunes the vocabulary
to 512 candidates at the first of them. What happens once per request (encoder,
keys and values of the source) is measured by itself and not counted. Needs JAX
and nothing else. On two CPU cores some minutes for T5-small at batch 1.

With --compare=exact, fills side by side at two kinds of depths: most tokens
after layer 1 or 2 and the others at full depth, and evenly up to L/2; 'exact'
is `CatchUp`, which does the layers' arithmetic for earlier positions, too.
With --compare=plans, layer plans of about L/2 layers beside exits of as many on
the mean: layers that are kept, SkipDecode, and all attention with every second
feed-forward block. Of plans 'mean exit layer' is how many layers ran.
With --compare=sources, a half, a quarter and an eighth of the source positions
kept, alone and with exits of mean L/3; give a long --source_length.
With --compare=contexts, places for all of the output so far, a half, a quarter
and an eighth of it, with the gates that choose; give a long --target_length.

  python -m calm_jax.benchmarks.decode_speed --show=speed.json

prints the table of an earlier run.
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  costs,
  decoding,
  evaluation,
  interfaces,
  model,
  records,
  reporting,
)
from calm_jax.benchmarks import bandwidth, speed_ways
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.evaluation import stopwatch
from calm_jax.records import provenance

_READ = 'read'
_START = 'start'


def measure(
  shape: str,
  *,
  batch_size: int,
  source_length: int,
  target_length: int,
  dtype: str = 'float32',
  num_repeats: int = 5,
  depth_loops: Sequence[str] = tuple(decoding.DEPTH_LOOPS),
  seed: int = 0,
  config: model.T5Config | None = None,
  compare: str = 'exits',
) -> tuple[float, list[records.SpeedRow]]:
  """Measures one shape at one batch size.

  Args:
    shape: a name of `T5Config.named`, or what to call `config`.
    batch_size: B.
    source_length: S.
    target_length: T.
    dtype: of activations and matrices.
    num_repeats: turns.
    depth_loops: keys of `decoding.DEPTH_LOOPS`.
    seed: of weights, sources and depths.
    config: another model than the named one.
    compare: a key of `speed_ways.COMPARED`.

  Returns:
    The memory bandwidth in gigabytes per second, and one row per way of
    decoding and depth loop.
  """
  depth_loops = decoding.check_depth_loops(depth_loops)
  config = config or model.T5Config.named(shape, dtype=dtype)
  if compare not in speed_ways.COMPARED:
    raise ValueError(
      f'compare is {compare!r}; give one of {list(speed_ways.COMPARED)}'
    )
  compared = list(
    speed_ways.COMPARED[compare](
      config,
      batch_size,
      target_length,
      source_length=source_length,
      seed=seed,
    )
  )
  inputs = np.random.default_rng(seed).integers(
    2, config.vocab_size, (batch_size, source_length)
  )
  runs: dict[Any, Any] = {_READ: bandwidth.prepare_read()}
  compile_seconds, spent = {}, {}
  decoder = model.as_layered_decoder(config)
  params = model.init_params(config, jax.random.key(seed))
  for loop in depth_loops:
    request = functools.partial(
      decoding.start,
      decoding.bind(decoder, params, depth_loop=decoding.DEPTH_LOOPS[loop]),
      inputs,
      eos_id=-1,
      max_length=target_length,
    )
    for way in compared:
      start = functools.partial(request, policy=way.policy)
      run = stopwatch.AfterStart(start, _decode_all)
      compile_seconds[way, loop], work = _warm_up(run, way)
      spent[way] = costs.decode_cost(
        config,
        work,
        source_length=source_length,
        source_kept=way.source_kept,
        context_room=way.context_room,
      )
      runs[way, loop] = run
    runs[_START, loop] = start
  seconds = stopwatch.interleaved_seconds(runs, num_repeats)
  medians = {key: statistics.median(turns) for key, turns in seconds.items()}
  rate = bandwidth.read_bytes() / medians.pop(_READ)
  starts = {loop: medians.pop((_START, loop)) for loop in depth_loops}
  rows = _rows(medians, starts, spent, rate, config.num_decoder_layers)
  return rate / 1e9, [
    records.SpeedRow(
      shape=shape,
      batch_size=batch_size,
      compile_seconds=compile_seconds[key],
      **row,
    )
    for key, row in zip(medians, rows, strict=True)
  ]


def _decode_all(state: decoding.DecodeState) -> decoding.DecodeResult:
  return decoding.finish(decoding.advance(state))


def _warm_up(run, way: speed_ways.Way) -> tuple[float, interfaces.Work]:
  """Returns the seconds of compiling, and the ledger; checks the depths."""
  before = evaluation.compile_seconds()
  result = jax.device_get(run())
  if not np.array_equal(result.exit_layers, way.depths):
    raise AssertionError(f'{way.name} did not keep to its depths')
  return evaluation.compile_seconds() - before, result.work


def _rows(stepping, starts, spent, rate, num_layers):
  """Yields the numbers of a row for every way and loop."""
  # The eager fill alone writes the K/V of layers that nobody ran.
  full, one = (
    min(
      (
        key for key in stepping if (key[0].name, key[0].fill) == (name, 'eager')
      ),
      key=stepping.get,
    )
    for name in (speed_ways.FULL, speed_ways.ONE)
  )
  # Full depth taken apart: head and fill of all layers, and the layers' rest.
  per_layer = (stepping[full] - stepping[one]) / (num_layers - 1)
  whole = stepping[one] - per_layer
  for (way, loop), seconds in stepping.items():
    cost = spent[way]
    yield dict(
      name=way.name,
      depth_loop=loop,
      cache_fill=way.fill,
      mean_exit_layer=way.mean_layers,
      milliseconds_per_step=1e3 * seconds / cost.num_steps,
      start_milliseconds=1e3 * starts[loop],
      parts=math.nan
      if way.policy.exit_rule.needs_logits
      or way.source_kept
      or way.context_room
      else 1e3 * (whole + per_layer * way.mean_layers) / cost.num_steps,
      bound=1e3 * cost.stepping_bytes / rate / cost.num_steps,
      speed_up=stepping[full] / seconds,
      ceiling=costs.speed_up_ceiling(spent[full[0]], cost),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('decode_speed', __doc__)
  add = parser.add
  add('shapes', 't5_v1_1_small', 'models, separated by commas')
  add('batch_sizes', '1', 'rows decoded together, separated by commas')
  add('source_length', 64, 'tokens of a source', type=int)
  add('target_length', 64, 'tokens decoded', type=int)
  add('dtype', 'float32', 'float32 or bfloat16')
  add('depth_loops', ','.join(decoding.DEPTH_LOOPS), 'depth loops, by commas')
  add('compare', 'exits', 'exits, exact, plans, sources, contexts: ways')
  add('num_repeats', 5, 'turns; medians are reported', type=int)
  add('seed', 0, 'of weights, sources and depths', type=int)
  add('output', None, 'a JSON file to write')
  add('show', None, 'print the table of this JSON file and measure nothing')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  if flags.show:
    report = records.read_record(flags.show, records.SpeedReport)
    print(reporting.render_speed_markdown(report))
    return
  rates, rows = [], []
  try:
    for shape in flags.shapes.split(','):
      for batch_size in map(int, flags.batch_sizes.split(',')):
        print(f'{shape} at batch {batch_size}', file=sys.stderr, flush=True)
        rate, found = measure(
          shape,
          batch_size=batch_size,
          source_length=flags.source_length,
          target_length=flags.target_length,
          dtype=flags.dtype,
          num_repeats=flags.num_repeats,
          depth_loops=flags.depth_loops.split(','),
          seed=flags.seed,
          compare=flags.compare,
        )
        rates.append(rate)
        rows += found
  except ValueError as error:
    sys.exit(f'decode_speed: {error}')
  report = records.SpeedReport(
    bandwidth=statistics.median(rates),
    source_length=flags.source_length,
    target_length=flags.target_length,
    num_repeats=flags.num_repeats,
    rows=tuple(rows),
    context=provenance.run_context(
      device=jax.devices()[0].device_kind,
      dtype=flags.dtype,
      libraries=('jax', 'jaxlib', 'numpy', 'calm_jax'),
      seeds={'weights, sources and depths': flags.seed},
    ),
  )
  if flags.output:
    records.write_json(flags.output, report)
  print(reporting.render_speed_markdown(report))


if __name__ == '__main__':
  main()

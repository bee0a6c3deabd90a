"""What `weights_speed` times: float and 8-bit weights, and other programs."""

import dataclasses
import functools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from calm_jax import decoding, exits, interfaces, model
from calm_jax.array_types import Params
from calm_jax.benchmarks import peers, speed_ways
from calm_jax.quantisation import Int8Weights

_ENCODER_TOO, _HALF = 'int8 with its encoder', 'bfloat16'
FULL = f'float, {speed_ways.FULL}'
_WEIGHTS = {
  'float': None,
  'int8': Int8Weights(),
  _ENCODER_TOO: Int8Weights(encoder=True),
  _HALF: None,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """Something to time.

  Attributes:
    name: weights and depths, or another program.
    run: decodes a whole batch of requests, encoder included.
    mean_exit_layer: decoder layers per token.
    depth_loop: a key of `decoding.DEPTH_LOOPS`, '-' for other programs.
    megabytes: of all parameters as loaded; NaN for other programs.
  """

  name: str
  run: Callable[[], object]
  mean_exit_layer: float
  depth_loop: str = '-'
  megabytes: float = math.nan


def ways(
  config: model.T5Config, batch_size: int, length: int, *, seed: int
) -> list[speed_ways.Way]:
  """Returns full depth, and forced depths with the fill that is faster.

  Depths with checks come with the eager fill.
  """
  fill = 'deferred' if batch_size == 1 else 'eager'

  def is_compared(way: speed_ways.Way) -> bool:
    checked = (speed_ways.CHECKS, speed_ways.INT8_CHECKS)
    if way.name == speed_ways.FULL or any(_checks(way, c) for c in checked):
      return True
    forced = isinstance(way.policy.exit_rule, exits.ScheduledExit)
    return forced and way.fill == fill and way.name != speed_ways.ONE

  every = speed_ways.ways(config, batch_size, length, seed=seed)
  return [*filter(is_compared, every)]


def own_requests(
  config: model.T5Config,
  params: Params,
  inputs: np.ndarray,
  compared: Sequence[speed_ways.Way],
  loop: str,
) -> Iterator[Request]:
  """Yields this library's decodes by a depth loop, compiled and checked."""
  for weights, plan in _WEIGHTS.items():
    dtype = weights if weights == _HALF else config.dtype
    bound = decoding.bind(
      model.as_layered_decoder(dataclasses.replace(config, dtype=dtype)),
      params,
      depth_loop=decoding.DEPTH_LOOPS[loop],
      weights=plan,
    )
    for way in compared:
      if weights in (_ENCODER_TOO, _HALF) and way.name != speed_ways.FULL:
        continue
      # In a model in 8 bits all checks are.
      if plan and _checks(way, speed_ways.INT8_CHECKS):
        continue
      run = functools.partial(
        decoding.generate,
        bound,
        inputs,
        policy=way.policy,
        max_length=way.depths.shape[1],
        eos_id=-1,
      )
      name = f'{weights}, {way.name}'
      print(f'compiling {name}', file=sys.stderr, flush=True)
      if not np.array_equal(run().exit_layers, way.depths):
        raise AssertionError(f'{name} did not keep to its depths')
      mean = float(way.depths.mean())
      yield Request(name, run, mean, loop, _megabytes(bound))


def _checks(way: speed_ways.Way, what: str) -> bool:
  return way.name.endswith(f', {what}')


def _megabytes(bound: interfaces.BoundDecoder) -> float:
  """Returns what parameters take; a tied output matrix is there once."""
  leaves = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(bound.params)}
  return sum(leaves.values()) / 1e6


def peer_requests(
  config: model.T5Config, params: Params, inputs: np.ndarray, length: int
) -> list[Request]:
  """Returns the decodes of other programs, each of them tried once.

  Raises:
    ValueError: if one ends before T tokens: it would seem fast.
  """
  with tempfile.TemporaryDirectory() as folder:
    decodes = peers.installed_peers(
      params,
      config,
      os.path.join(folder, 'huggingface'),
      max_length=length,
      min_length=length,
    )
  if not decodes:
    print('no other program is installed', file=sys.stderr)
  for name, decode in decodes.items():
    tokens = decode(inputs)
    if tokens.shape[1] < length or not tokens[:, length - 1].any():
      raise ValueError(
        f'{name} ended before {length} tokens; give another --seed, or leave '
        'out --peers'
      )
  return [
    Request(name, functools.partial(decode, inputs), config.num_decoder_layers)
    for name, decode in decodes.items()
  ]

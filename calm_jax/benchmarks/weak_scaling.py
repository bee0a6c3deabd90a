"""Decodes on 1, 2, 4 ... devices of one machine, the rows of each the same.

  python -m calm_jax.benchmarks.weak_scaling --devices=1,2,4

Random weights and sources, forced depths, no end of sequence. Devices are made
up on the CPU (--devices of one accelerator machine are taken as they are with
--real), so they share its cores: what a mesh costs shows in the last column,
which holds n devices with b rows each against one device with n x b rows,
measured in turns.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import decoding, exits, model, sharding
from calm_jax.benchmarks import (
  forced_depths,
  measured_rows,
  weak_scaling_table,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.weak_scaling_table import ScalingRow
from calm_jax.evaluation import stopwatch


def measure(
  config: model.T5Config,
  devices: Sequence[int],
  *,
  rows_per_device: int,
  source_length: int,
  target_length: int,
  num_repeats: int,
  seed: int = 0,
) -> list[ScalingRow]:
  """Returns a row for every number of devices.

  Args:
    config: the model.
    devices: numbers of devices; each is also held against one device with as
      many rows.
    rows_per_device: b.
    source_length: S.
    target_length: T.
    num_repeats: turns; medians are taken.
    seed: of weights, sources and depths.
  """
  decoder = model.as_layered_decoder(config)
  params = model.init_params(config, jax.random.key(seed))
  rng = np.random.default_rng(seed)
  runs = {}
  for count, parts in {(n, n) for n in devices} | {(n, 1) for n in devices}:
    rows = count * rows_per_device
    mesh = sharding.make_mesh(data=parts, devices=jax.devices()[:parts])
    size = (rows, target_length)
    num_layers = config.num_decoder_layers
    depths = forced_depths.random_depths(
      size, num_layers, mean=num_layers / 3, seed=seed
    )
    run = functools.partial(
      decoding.generate,
      decoding.bind(decoder, params, mesh=mesh),
      rng.integers(2, config.vocab_size, (rows, source_length)),
      policy=decoding.ComputePolicy(exit_rule=exits.ScheduledExit(depths)),
      max_length=target_length,
      eos_id=-1,
    )
    jax.block_until_ready(run())
    runs[parts, rows] = run
  seconds = stopwatch.interleaved_seconds(runs, num_repeats)
  rates = {
    (parts, rows): rows * target_length / statistics.median(turns)
    for (parts, rows), turns in seconds.items()
  }
  sizes = {count: count * rows_per_device for count in sorted(set(devices))}
  return [
    ScalingRow(
      num_devices=count,
      num_rows=rows,
      tokens_per_second=rates[count, rows],
      of_one_device=rates[count, rows] / rates[1, rows],
    )
    for count, rows in sizes.items()
  ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('weak_scaling', __doc__)
  add = parser.add
  add('shape', 't5_v1_1_small', 'the model')
  add('devices', '1,2,4', 'how many devices, separated by commas')
  add('rows_per_device', 4, 'rows of each', type=int)
  add('source_length', 32, 'tokens of a source', type=int)
  add('target_length', 32, 'tokens decoded', type=int)
  add('num_repeats', 3, 'turns; medians are taken', type=int)
  add('output', None, 'a JSON file to write')
  parser.add_argument(
    '--real', action='store_true', help='the devices there are, none made up'
  )
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  devices = [int(number) for number in flags.devices.split(',')]
  if not flags.real:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', max(devices))
  if max(devices) > jax.device_count():
    sys.exit(
      f'weak_scaling: {max(devices)} devices are asked for, and there are '
      f'{jax.device_count()}'
    )
  config = model.T5Config.named(flags.shape)
  rows = measure(
    config,
    devices,
    rows_per_device=flags.rows_per_device,
    source_length=flags.source_length,
    target_length=flags.target_length,
    num_repeats=flags.num_repeats,
  )
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype=config.dtype
  )
  measured_rows.publish(measured, weak_scaling_table.table, flags.output)


if __name__ == '__main__':
  main()

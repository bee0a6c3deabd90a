"""How evaluation throughput grows with devices: a model fed recorded depths.

  python -m calm_jax.benchmarks.scaling_model \
    --predictions='runs/e2e_nlg/evaluation/predictions/early-*.jsonl'

Takes the exit layers of an evaluation's predictions, as many copies of them as
it is told to, and adds up what devices would do with them: a step of a batch
costs its deepest row's layers and a fixed part (output matrix, keys and values
of all layers), a batch lasts as long as its longest row. Compared are devices
that wait for each other after every batch, as one program over all of them
would; devices on their own; the same with inputs sorted by source length; and
slots that are refilled. NumPy only.
"""

import argparse
import dataclasses
import glob
import heapq
import sys
from collections.abc import Sequence

import numpy as np

from calm_jax import records
from calm_jax.benchmarks import measured_rows
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
  """What is known of N decoded inputs.

  Attributes:
    exit_layers: int [N, T], layers used, 0 where nothing was decoded.
    source_lengths: int [N], characters of the inputs.
  """

  exit_layers: np.ndarray
  source_lengths: np.ndarray

  def take(self, rows: np.ndarray) -> 'Recorded':
    """Returns some inputs, in this order, perhaps several times."""
    return Recorded(self.exit_layers[rows], self.source_lengths[rows])


def read_predictions(pattern: str) -> Recorded:
  """Reads the predictions of an evaluation.

  Args:
    pattern: a glob of its JSONL files.

  Raises:
    ValueError: if there are none.
  """
  rows = [
    row
    for path in sorted(glob.glob(pattern))
    for row in records.read_jsonl(path)
  ]
  if not rows:
    raise ValueError(
      f'no predictions in {pattern}: calm_jax.cli.evaluate writes them to '
      'MODEL_DIR/evaluation/predictions'
    )
  exit_layers = np.zeros(
    (len(rows), max(len(row['exit_layers']) for row in rows)), np.int64
  )
  for index, row in enumerate(rows):
    exit_layers[index, : len(row['exit_layers'])] = row['exit_layers']
  lengths = np.array([len(row['inputs']) for row in rows])
  return Recorded(exit_layers, lengths)


def batch_costs(
  recorded: Recorded, batch_size: int, fixed: float
) -> np.ndarray:
  """Returns what each batch of neighbours costs, float [N / B], in layers.

  >>> depths = Recorded(np.array([[1, 3, 0], [2, 0, 0]]), np.array([5, 5]))
  >>> batch_costs(depths, 2, fixed=1.0).tolist()  # (2 + 1) + (3 + 1)
  [7.0]
  """
  size, length = recorded.exit_layers.shape
  padded = np.zeros((-(-size // batch_size) * batch_size, length), np.int64)
  padded[:size] = recorded.exit_layers
  deepest = padded.reshape(-1, batch_size, length).max(axis=1)
  return (deepest + fixed * (deepest > 0)).sum(axis=1)


def lockstep_seconds(costs: np.ndarray, num_devices: int) -> float:
  """Returns how long devices take that wait for each other every batch."""
  rounds = np.zeros(-(-len(costs) // num_devices) * num_devices)
  rounds[: len(costs)] = costs
  return float(rounds.reshape(-1, num_devices).max(axis=1).sum())


def alone_seconds(costs: np.ndarray, num_devices: int) -> float:
  """Returns how long the slowest of devices takes that never wait.

  Batch i is of device i modulo their number.
  """
  return max(
    float(costs[device::num_devices].sum()) for device in range(num_devices)
  )


def slots_seconds(
  recorded: Recorded, num_devices: int, batch_size: int, fixed: float
) -> float:
  """Returns how long the slowest of devices with refilled slots takes.

  A slot takes the next input of its device's as soon as its row has ended; what
  starting one costs is left out.
  """
  slowest = 0.0
  for device in range(num_devices):
    mine = recorded.exit_layers[device::num_devices]
    lengths = (mine > 0).sum(axis=1)
    # When each input starts, in steps: in the slot that is free first.
    free = [0] * min(batch_size, max(len(mine), 1))
    end = max(int(lengths.sum()), 1)
    deepest = np.zeros(end, np.int64)
    for depths, length in zip(mine, lengths, strict=True):
      start = heapq.heappop(free)
      steps = slice(start, start + length)
      deepest[steps] = np.maximum(deepest[steps], depths[:length])
      heapq.heappush(free, start + int(length))
    slowest = max(slowest, float((deepest + fixed * (deepest > 0)).sum()))
  return slowest


def efficiencies(
  recorded: Recorded,
  num_devices: int,
  *,
  batch_size: int,
  fixed: float,
  copies: int,
  seed: int,
) -> dict[str, float]:
  """Returns the throughput of each way over that of perfect sharing.

  Perfect is every device with an equal part of what one device does with
  batches in the order of the data. Copies are shuffled, and sorted, one by one:
  the same input twice in a batch would flatter.
  """
  rng = np.random.default_rng(seed)
  size = len(recorded.source_lengths)
  shuffled = [rng.permutation(size) for _ in range(copies)]
  by_length = [
    rows[np.argsort(recorded.source_lengths[rows], kind='stable')]
    for rows in shuffled
  ]
  in_order = recorded.take(np.concatenate(shuffled))
  costs, sorted_costs = (
    batch_costs(data, batch_size, fixed)
    for data in (in_order, recorded.take(np.concatenate(by_length)))
  )
  perfect = float(costs.sum()) / num_devices
  seconds = {
    'one program': lockstep_seconds(costs, num_devices),
    'alone': alone_seconds(costs, num_devices),
    'alone, sorted': alone_seconds(sorted_costs, num_devices),
    'alone, slots': slots_seconds(in_order, num_devices, batch_size, fixed),
  }
  return {name: perfect / taken for name, taken in seconds.items()}


@dataclasses.dataclass(frozen=True)
class EfficiencyRow:
  """What some number of devices would make of the inputs.

  Attributes:
    num_devices: how many share the work.
    efficiencies: as of `efficiencies`.
  """

  num_devices: int
  efficiencies: dict[str, float]


def table(measured: Measured) -> tables.Table:
  """Returns the table of efficiencies."""
  rows, flags = measured.rows, measured.flags
  return tables.Table(
    header=('devices', *rows[0].efficiencies),
    rows=tuple(
      (
        str(row.num_devices),
        *(f'{ratio:.2f}' for ratio in row.efficiencies.values()),
      )
      for row in rows
    ),
    notes=(
      'Throughput over that of as many devices that share perfectly: '
      f'{flags["copies"]} copies of the inputs, {flags["batch_size"]} rows per '
      "device, a step taken to cost its deepest row's layers and "
      f'{flags["fixed"]:g} more.',
    ),
  )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('scaling_model', __doc__)
  add = parser.add
  add('predictions', None, 'a glob of predictions', required=True)
  add('devices', '1,4,16,64,256', 'how many devices, separated by commas')
  add('batch_size', 8, 'rows of a device', type=int)
  add('fixed', 2.0, 'what a step costs besides layers, in layers', type=float)
  add('copies', 16, 'how often the data are taken', type=int)
  add('seed', 0, 'of the order', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads, adds up, writes and prints."""
  flags = _parse(arguments)
  try:
    recorded = read_predictions(flags.predictions)
    devices = [int(number) for number in flags.devices.split(',')]
    for name in ('batch_size', 'copies'):
      if getattr(flags, name) < 1:
        raise ValueError(f'{name} is {getattr(flags, name)}, not 1 or more')
    if min(devices) < 1 or flags.fixed < 0:
      raise ValueError(
        f'devices is {flags.devices} and fixed {flags.fixed}: give devices of '
        '1 or more, and a cost that is not negative'
      )
  except ValueError as error:
    sys.exit(f'scaling_model: {error}')
  options = {
    name: getattr(flags, name)
    for name in ('batch_size', 'fixed', 'copies', 'seed')
  }
  measured = measured_rows.of_this_process(
    [
      EfficiencyRow(number, efficiencies(recorded, number, **options))
      for number in devices
    ],
    flags,
    device='a model of devices',
    dtype='float64',
    libraries=('numpy', 'calm_jax'),
  )
  measured_rows.publish(measured, table, flags.output)


if __name__ == '__main__':
  main()

"""Measures tokens per second on a data set: static batches against slots.

  python -m calm_jax.benchmarks.throughput --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --threshold=0.8

Decodes the same inputs of a token file (see calm_jax.cli.tokenize) in three
ways: static batches in the order of the file, static batches of inputs sorted
by length and cut to length buckets, and slots that are refilled as their rows
end (`decoding.decode_queue`, sorted as well). All with the full model and with
early exit at the given threshold of the softmax margin, in turns; every way
decodes the same tokens. Needs no gin, seqio or TensorFlow.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  checkpoints,
  decoding,
  exits,
  interfaces,
  model,
)
from calm_jax.benchmarks import (
  measured_rows,
  throughput_table,
  token_inputs,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.throughput_table import ThroughputRow
from calm_jax.evaluation import stopwatch

WAYS = ('static', 'sorted', 'slots')


@dataclasses.dataclass(frozen=True)
class _Job:
  """What every way decodes with."""

  bound: interfaces.BoundDecoder
  batch_size: int
  steps: int
  options: dict[str, Any]


def measure(
  bound: interfaces.BoundDecoder,
  sources: Sequence[np.ndarray],
  *,
  batch_size: int,
  max_length: int,
  threshold: float,
  steps: int = 8,
  num_repeats: int = 3,
) -> list[ThroughputRow]:
  """Measures every way with the full model and with early exit.

  Args:
    bound: the decoder with its parameters.
    sources: token ids of the inputs, EOS included.
    batch_size: B, also the number of slots.
    max_length: T.
    threshold: of the softmax margin.
    steps: tokens between two looks for rows that have ended.
    num_repeats: turns; medians are reported.

  Raises:
    ValueError: for fewer inputs than a batch has rows.
    AssertionError: if two ways decode different numbers of tokens.
  """
  if len(sources) < batch_size:
    raise ValueError(
      f'{len(sources)} inputs do not fill a batch of {batch_size}; give more, '
      'or a smaller batch'
    )
  margin = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
  policies = {
    'full model': decoding.ComputePolicy(),
    f'softmax margin, threshold {threshold:g}': decoding.ComputePolicy(
      exit_rule=margin
    ),
  }
  runs, counts = {}, {}
  for name, policy in policies.items():
    options = dict(policy=policy, max_length=max_length)
    job = _Job(bound, batch_size, steps, options)
    for way in WAYS:
      runs[name, way] = functools.partial(_WAYS[way], job, sources)
      counts[name, way] = runs[name, way]()
    _check_same(name, [counts[name, way] for way in WAYS])
  seconds = stopwatch.interleaved_seconds(runs, num_repeats)
  rates = {
    key: counts[key] / statistics.median(turns)
    for key, turns in seconds.items()
  }
  return [
    ThroughputRow(
      policy=name,
      way=way,
      tokens_per_second=rate,
      speed_up=rate / rates['full model', 'static'],
      num_tokens=counts[name, way],
    )
    for (name, way), rate in rates.items()
  ]


def _check_same(name: str, tokens: list[int]) -> None:
  # Sums round in another order at another length: a token may tip over.
  if max(tokens) - min(tokens) > 0.02 * max(tokens):
    raise AssertionError(f'{name}: tokens by way of batching: {tokens}')


def _static(job: _Job, sources: Sequence[np.ndarray]) -> int:
  """Decodes batches in their order, all padded to the longest source."""
  return _batches(job, sources, token_inputs.bucket(max(map(len, sources))))


def _sorted(job: _Job, sources: Sequence[np.ndarray]) -> int:
  """Decodes batches of like lengths, each padded to its own bucket."""
  return _batches(job, sorted(sources, key=len), None)


def _batches(job, sources, length) -> int:
  """Returns how many tokens static batches give."""
  num_tokens = 0
  for start in range(0, len(sources), job.batch_size):
    part = sources[start : start + job.batch_size]
    size = length or token_inputs.bucket(max(map(len, part)))
    inputs = np.zeros((job.batch_size, size), np.int32)
    # What is missing of the last batch is filled with its last input.
    for row in range(job.batch_size):
      source = part[min(row, len(part) - 1)]
      inputs[row, : len(source)] = source
    result = decoding.generate(job.bound, inputs, **job.options)
    lengths = np.asarray(result.lengths)
    num_tokens += int(lengths[: len(part)].sum())
  return num_tokens


def _slots(job: _Job, sources: Sequence[np.ndarray]) -> int:
  """Decodes in slots, one queue per bucket of source lengths."""
  buckets: dict[int, list[np.ndarray]] = {}
  for source in sorted(sources, key=len):
    buckets.setdefault(token_inputs.bucket(len(source)), []).append(source)
  num_tokens = 0
  for length, part in buckets.items():
    for _, result in decoding.decode_queue(
      job.bound,
      part,
      num_slots=job.batch_size,
      source_length=length,
      steps=job.steps,
      **job.options,
    ):
      num_tokens += int(result.lengths)
  return num_tokens


_WAYS: dict[str, Callable[..., int]] = {
  'static': _static,
  'sorted': _sorted,
  'slots': _slots,
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('throughput', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train', required=True)
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize', required=True)
  add('num_inputs', 256, 'inputs of it that are decoded', type=int)
  add('batch_size', 16, 'rows decoded together, and slots', type=int)
  add('max_length', 64, 'most tokens of an output', type=int)
  add('threshold', 0.8, 'of the softmax margin', type=float)
  add('steps', 8, 'tokens between two looks at the slots', type=int)
  add('num_repeats', 3, 'turns; medians are reported', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    params, config, about = checkpoints.load_params(flags.run_dir)
    sources = token_inputs.read_sources(flags.tokens, flags.num_inputs, about)
    rows = measure(
      decoding.bind(model.as_layered_decoder(config), params),
      sources,
      batch_size=flags.batch_size,
      max_length=flags.max_length,
      threshold=flags.threshold,
      steps=flags.steps,
      num_repeats=flags.num_repeats,
    )
  except (OSError, ValueError) as error:
    sys.exit(f'throughput: {error}')
  measured = measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    num_inputs=len(sources),
  )
  measured_rows.publish(measured, throughput_table.table, flags.output)


if __name__ == '__main__':
  main()

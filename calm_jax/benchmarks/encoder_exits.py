"""Measures an encoder's classifier under exit rules: accuracy, layers, clock.

  python -m calm_jax.benchmarks.encoder_exits --run_dir=runs/banking77 \
    --tokens=runs/banking77/tokens/test.npz --output=encoder_exits.json \
    --certificates=runs/banking77/encoder_calibration/certificate.json

The run has heads of its encoder layers (`calm_jax.cli.train_encoder_heads`).
Accuracies and layers of all rules and settings come from one pass over all
layers of a token file (`calm_jax.cli.tokenize`): a row that leaves an encoder
changes nothing before. The clock is of what really leaves, `encoding.classify`,
beside the full encoder with the head of its last layer, in turns on the same
batches. Thresholds are not chosen here: certificates say which one may be used.
Needs neither gin, seqio nor TensorFlow.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import checks, evaluation, model, runs
from calm_jax.benchmarks import (
  encoder_exit_rules,
  encoder_exit_times,
  encoder_exits_table,
  measured_rows,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.encoder_exit_rules import Entry
from calm_jax.benchmarks.encoder_exits_table import EncoderExitRow
from calm_jax.data.token_batches import npz_batches

Batches = Sequence[Mapping[str, Any]]


def _numbers(kind: type):
  return lambda text: [kind(part) for part in text.split(',') if part]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('encoder_exits', __doc__)
  add, wholes = parser.add, _numbers(int)
  add('run_dir', None, 'a run directory with heads of its encoder')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('heads', 'encoder_heads', 'their folder in run_dir')
  add('gate', None, 'the folder of a gate of the encoder')
  add('thresholds', [0.99, 0.9, 0.7, 0.5], 'to try', type=_numbers(float))
  add('patience', [1, 2], 'to try', type=wholes)
  add('certificates', [], 'of jobs on this encoder', type=_numbers(str))
  add('max_inputs', None, 'of the file, at most; all if none', type=int)
  add('batch_sizes', [1, 32], 'to time; empty for none', type=wholes)
  add('num_timed', 64, 'inputs to time', type=int)
  add('num_repeats', 5, 'turns', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens')
  for name in ('num_timed', 'num_repeats'):
    checks.check_whole(getattr(flags, name), name, low=1)
  for size in flags.batch_sizes:
    checks.check_whole(size, 'batch_sizes', low=1, high=flags.num_timed)


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  run = runs.load_run(flags.run_dir)
  labels = runs.load_class_labels(flags.run_dir, name=flags.heads)
  entries = encoder_exit_rules.entries_of(
    flags.run_dir,
    heads=flags.heads,
    gate=flags.gate,
    thresholds=flags.thresholds,
    patience=flags.patience,
    certificates=flags.certificates,
  )
  classifier = evaluation.DatasetClassifier(
    encoder=model.as_layered_encoder(run.config),
    params=run.params,
    heads=runs.load_encoder_heads(flags.run_dir, name=flags.heads, run=run),
    class_texts=labels.texts,
  )
  batches = _inputs(flags, run.feature_lengths)
  classes = np.concatenate(
    [labels.numbers_of(batch['decoder_target_tokens']) for batch in batches]
  )
  classes = classes[classes >= 0]
  times = [
    encoder_exit_times.batch_times(
      classifier,
      [rule for _, _, rule in entries],
      batches,
      batch_size=size,
      num_inputs=flags.num_timed,
      num_repeats=flags.num_repeats,
    )
    for size in flags.batch_sizes
  ]
  found = _rows(classifier, entries, batches, classes, times, flags)
  return measured_rows.of_this_process(
    found,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=run.config.dtype,
    num_inputs=len(classes),
    num_classes=len(labels.texts),
    num_layers=run.config.num_encoder_layers,
  )


def _inputs(flags: argparse.Namespace, lengths: Mapping[str, int]) -> Batches:
  """Returns the inputs of the token file, in batches of 32."""
  batches = npz_batches(
    flags.tokens, 32, feature_lengths=lengths, shuffle=False, num_epochs=1
  )
  found, left = [], flags.max_inputs
  for batch in batches:
    kept = batch['num_valid'] if left is None else min(left, batch['num_valid'])
    if not kept:
      break
    rows = np.arange(32)[:, None] < kept
    found.append(
      {
        name: np.where(rows, value, 0) if np.ndim(value) else kept
        for name, value in batch.items()
      }
    )
    left = None if left is None else left - kept
  return found


def _rows(
  classifier: evaluation.DatasetClassifier,
  entries: Sequence[Entry],
  batches: Batches,
  classes: np.ndarray,
  times: Sequence[Sequence[tuple[float, str]]],
  flags: argparse.Namespace,
) -> list[EncoderExitRow]:
  """Returns the rows: what rules say, and their times."""
  name, said = os.path.basename(os.path.normpath(flags.run_dir)), []
  for _, _, rule in entries:
    found = classifier(batches, policy=classifier.policy(rule))
    said.append((found.tokens[:, 0] - 1, found.mean_exit_layer))
  full = said[0][0]
  return [
    EncoderExitRow(
      run=name,
      rule=entry[0],
      setting=entry[1],
      accuracy=float((mine == classes).mean()),
      agreement=float((mine == full).mean()),
      mean_layers=layers,
      milliseconds=tuple(column[place][0] for column in times),
      loops=tuple(column[place][1] for column in times),
    )
    for place, (entry, (mine, layers)) in enumerate(
      zip(entries, said, strict=True)
    )
  ]


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    measured = _run(flags)
  except (OSError, ValueError) as error:
    sys.exit(f'encoder_exits: {error}')
  measured_rows.publish(measured, encoder_exits_table.table, flags.output)


if __name__ == '__main__':
  main()

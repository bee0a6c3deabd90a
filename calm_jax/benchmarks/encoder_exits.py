"""Measures an encoder's classifier under exit rules: accuracy, layers, clock.

  python -m calm_jax.benchmarks.encoder_exits --run_dir=runs/banking77 \
    --tokens=runs/banking77/tokens/test.npz --output=encoder_exits.json \
    --calibration=runs/banking77/tokens/calibration.npz

The run has heads of its encoder layers (`calm_jax.cli.train_encoder_heads`).
Accuracies and layers of all rules and settings come from one pass over all
layers of a token file (`calm_jax.cli.tokenize`): a row that leaves an encoder
changes nothing before. Nothing is chosen by these rows. Each rule by itself is
certified on the rows of --calibration, and the run notes that they were used;
or by jobs of one's own, whose --certificates are given.

The clock is of what really leaves, `encoding.classify`, beside the full encoder
with the head of its last layer, in turns on the same batches; where anything is
certified, of that alone.

  python -m calm_jax.benchmarks.encoder_exits --show=seed_0.json,seed_1.json \
    --picture=encoder_exits.png

makes one table and picture of several files; those of one run, whose heads are
of other seeds, come together. Needs neither gin, seqio nor TensorFlow.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import checks, evaluation, model, records, reporting, runs
from calm_jax.benchmarks import (
  encoder_exit_rules,
  encoder_exit_times,
  encoder_exits_table,
  measured_rows,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.encoder_exit_rules import Entry
from calm_jax.data.token_batches import npz_batches
from calm_jax.data.token_files import npz_input_hashes
from calm_jax.reporting import tables

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
  add('title', None, 'what the table calls the run; its folder if not given')
  add('called', '', 'what names of rules begin with, such as "words: "')
  add('rules', None, 'names of those that are wanted, by semicolons; all')
  add('timed', None, 'names of those that are timed, likewise; all')
  add('thresholds', None, 'to try; those that suit', type=_numbers(float))
  add('certificates', [], 'of jobs on this encoder', type=_numbers(str))
  add('calibration', None, 'a token file of inputs that chose nothing')
  add(
    'tolerances',
    None,
    'of disagreement, certified on --calibration; 0.02,0.05 if not given',
    type=_numbers(float),
  )
  add('max_inputs', None, 'of each file, at most; all if none', type=int)
  add('batch_sizes', [1, 32], 'to time; empty for none', type=wholes)
  add('num_timed', 64, 'inputs to time', type=int)
  add('num_repeats', 5, 'turns', type=int)
  add('output', None, 'a JSON file to write')
  add('show', None, 'print these JSON files, by commas, and measure nothing')
  parser.add_argument(
    '--every', action='store_true', help='print what is not certified, too'
  )
  add('picture', None, 'an image file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  if flags.tolerances is not None and flags.calibration is None:
    raise ValueError('tolerances are certified on --calibration; give it, too')
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens, or --show')
  for name in ('num_timed', 'num_repeats'):
    checks.check_whole(getattr(flags, name), name, low=1)
  if flags.max_inputs is not None:
    checks.check_whole(flags.max_inputs, 'max_inputs', low=1)
  for size in flags.batch_sizes:
    checks.check_whole(size, 'batch_sizes', low=1, high=flags.num_timed)


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  run = runs.load_run(flags.run_dir)
  labels = runs.load_class_labels(flags.run_dir, name=flags.heads)
  classifier = evaluation.DatasetClassifier(
    encoder=model.as_layered_encoder(run.config),
    params=run.params,
    heads=runs.load_encoder_heads(flags.run_dir, name=flags.heads, run=run),
    class_texts=labels.texts,
  )
  batches = _inputs(flags.tokens, flags.max_inputs, run.feature_lengths)
  entries = _entries(flags, run, classifier)
  classes = np.concatenate(
    [labels.numbers_of(batch['decoder_target_tokens']) for batch in batches]
  )
  classes = classes[classes >= 0]
  timed = _timed(flags, entries)
  times = [
    encoder_exit_times.batch_times(
      classifier,
      [entries[place].rule for place in timed],
      batches,
      batch_size=size,
      num_inputs=flags.num_timed,
      num_repeats=flags.num_repeats,
    )
    for size in flags.batch_sizes
  ]
  times = [dict(zip(timed, column, strict=True)) for column in times]
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


def _entries(
  flags: argparse.Namespace,
  run: runs.LoadedRun,
  classifier: evaluation.DatasetClassifier,
) -> list[Entry]:
  """Returns the full encoder, rules at settings, and what is certified."""
  rules = encoder_exit_rules.rules_of(
    flags.run_dir, heads=flags.heads, gate=flags.gate
  )
  of_jobs = encoder_exit_rules.OF_JOBS
  for named, known in ((flags.rules, rules), (flags.timed, [*rules, *of_jobs])):
    for name in [] if named is None else named.split(';'):
      if name not in known:
        raise ValueError(f'rule {name!r} is none of {"; ".join(known)}')
  if flags.rules is not None:
    rules = {name: rules[name] for name in flags.rules.split(';')}
  rules = {f'{flags.called}{name}': rule for name, rule in rules.items()}
  entries = [
    encoder_exit_rules.full(flags.called),
    *encoder_exit_rules.entries_of(classifier, rules, flags.thresholds),
  ]
  if flags.calibration is not None:
    _check_rows(flags)
    entries += encoder_exit_rules.calibrated(
      classifier,
      rules,
      _inputs(flags.calibration, flags.max_inputs, run.feature_lengths),
      flags.tolerances or (0.02, 0.05),
      uses_in=os.path.join(flags.run_dir, records.ROW_USES_NAME),
    )
  return entries + [
    encoder_exit_rules.certified_entry(path, flags.run_dir, called=flags.called)
    for path in flags.certificates
  ]


def _timed(flags: argparse.Namespace, entries: Sequence[Entry]) -> list[int]:
  """Returns the places of the full encoder and of what is timed beside it.

  What is certified where anything is, of the rules that --timed names.
  """
  certified = any(one.certified for one in entries)
  names = None if flags.timed is None else flags.timed.split(';')
  return [
    place
    for place, one in enumerate(entries)
    if not place
    or (
      one.certified == certified
      and (
        names is None
        or (one.method or one.name).removeprefix(flags.called) in names
      )
    )
  ]


def _check_rows(flags: argparse.Namespace) -> None:
  """Raises ValueError for rows that have chosen something, or are looked at."""
  hashes = npz_input_hashes(flags.calibration)
  own = os.path.join(flags.run_dir, records.TRAINING_ROWS_NAME)
  if not os.path.exists(own):
    print(
      f'no {own}: cannot check that these rows did not choose the model',
      file=sys.stderr,
    )
  for path in records.training_rows_files(flags.run_dir):
    seen = records.read_training_rows(path)
    used = np.isin(hashes, np.concatenate([seen.trained, seen.selected]))
    if used.any():
      raise ValueError(
        f'{used.sum()} of {len(hashes)} inputs of {flags.calibration} were '
        f'trained or selected on ({path}); certify on others'
      )
  both = np.isin(hashes, npz_input_hashes(flags.tokens))
  if both.any():
    raise ValueError(
      f'{both.sum()} of {len(hashes)} inputs of {flags.calibration} are in '
      f'{flags.tokens}, too; what certifies cannot show that it holds'
    )


def _inputs(
  path: str, number: int | None, lengths: Mapping[str, int]
) -> Batches:
  """Returns the inputs of a token file, at most so many, in batches of 32."""
  batches = npz_batches(
    path, 32, feature_lengths=lengths, shuffle=False, num_epochs=1
  )
  found, left = [], number
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
  times: Sequence[Mapping[int, tuple[float, str]]],
  flags: argparse.Namespace,
) -> list[records.EncoderExitRow]:
  """Returns the rows: what rules say, and their times."""
  title = flags.title or os.path.basename(os.path.normpath(flags.run_dir))
  said = []
  for entry in entries:
    found = classifier(batches, policy=classifier.policy(entry.rule))
    said.append((found.tokens[:, 0] - 1, found.mean_exit_layer))
  full = said[0][0]
  not_timed = math.nan, ''
  return [
    records.EncoderExitRow(
      run=title,
      rule=entry.name,
      setting=entry.setting,
      accuracy=float((mine == classes).mean()),
      agreement=float((mine == full).mean()),
      mean_layers=layers,
      milliseconds=tuple(one.get(place, not_timed)[0] for one in times),
      loops=tuple(one.get(place, not_timed)[1] for one in times),
      method=entry.method,
    )
    for place, (entry, (mine, layers)) in enumerate(
      zip(entries, said, strict=True)
    )
  ]


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures or reads, writes, prints and draws."""
  flags = _parse(arguments)
  try:
    if flags.show is not None:
      if flags.output is not None:
        raise ValueError('--show measures nothing that --output could keep')
      found = [
        measured_rows.read(path, records.EncoderExitRow)
        for path in flags.show.split(',')
      ]
    else:
      found = [_run(flags)]
  except (OSError, ValueError) as error:
    sys.exit(f'encoder_exits: {error}')
  if flags.output:
    records.write_json(flags.output, found[0])
  print(tables.with_notes(encoder_exits_table.table(*found, every=flags.every)))
  if flags.picture:
    rows = [row for one in found for row in one.rows]
    reporting.save_figure(
      reporting.encoder_exit_figure(rows), flags.picture, dpi=105
    )


if __name__ == '__main__':
  main()

"""The adaptive systems beside each other: quality, cost, clock, certificates.

  python -m calm_jax.benchmarks.adaptive_systems --run_dir=runs/e2e_nlg \
    --title=e2e_nlg --model=exits --tokens=runs/e2e_nlg/tokens/test.npz \
    --oracles=oracles.json --certificates=runs/e2e_nlg/tuned/certificate.json \
    --output=adaptive.json

Decodes the same inputs of a token file (see calm_jax.cli.tokenize) by settings
of every system: CALM with projected and with exact keys and values, static
depth, SoFT depth (the first layers alone), layers that are kept, SkipDecode, a
router, feed-forward skipping, small twins, a part of the source, pruned
context, and source, exits and vocabulary together. What is trained for a system
is read from the run directory; a system whose part is not there is left out.
Of every setting the output has how good it is, what it costs by the ledger and
how many layers ran; of a few of each system what they take on the clock, batch
size by batch size, in turns with our own full decode. Oracles are read from a
file of `benchmarks.oracles` of the same run and inputs.

What is done is kept in --output at once; a program that was interrupted, or is
run again with more systems, certificates or batch sizes, does not do it twice.

Needs no gin, seqio or TensorFlow, but rouge-score (the extra `metrics`).

  python -m calm_jax.benchmarks.adaptive_systems --show=a.json,b.json \
    --picture=adaptive_systems.png

makes one table and one picture of several models; --every shows settings that
were not timed, too.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import jax

from calm_jax import checks, decoding, records, reporting, runs
from calm_jax.benchmarks import (
  adaptive_certificates,
  adaptive_entries,
  adaptive_oracles,
  adaptive_rows,
  adaptive_settings,
  adaptive_steps,
  adaptive_table,
  arena_entries,
  clock_flags,
  kept_rows,
  measured_rows,
  text_inputs,
  token_inputs,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.records import SystemRow


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('adaptive_systems', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('title', None, 'what the table calls the data; the folder if not given')
  add('model', '-', 'what the table calls the checkpoint')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('systems', '', 'those that are wanted, by semicolons; all if not given')
  add('settings_per_system', None, 'at most so many; all', type=int)
  add('certificates', '', 'certificates of the run, separated by commas')
  add('oracles', None, 'a JSON file of benchmarks.oracles')
  add('num_inputs', 200, 'inputs that are decoded', type=int)
  add('batch_sizes', '1,16,64', 'rows timed together, by commas; none if empty')
  add('timed_inputs', '8,32,64', 'inputs timed at each batch size, by commas')
  add('quality_drop', 1.0, 'points that a timed setting may lose', type=float)
  add('max_length', None, 'most tokens of an output; as trained', type=int)
  add('metric', None, 'of distance and quality; by the alphabet if not given')
  add('num_repeats', 3, 'turns; medians are compared', type=int)
  add('depth_loops', 'unrolled', 'tried by the clock, by commas')
  add('output', None, 'a JSON file to write, and to go on with')
  add('show', None, 'print these JSON files, by commas, and measure nothing')
  parser.add_argument(
    '--every', action='store_true', help='show settings without a clock, too'
  )
  add('picture', None, 'an image file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  if not flags.run_dir or not flags.tokens or not flags.output:
    raise ValueError('give --run_dir, --tokens and --output, or --show')
  for name in (
    'num_inputs',
    'num_repeats',
    'settings_per_system',
    'max_length',
  ):
    if getattr(flags, name) is not None:
      checks.check_whole(getattr(flags, name), name, low=1)
  sizes = clock_flags.timed_sizes(flags)
  for size, number in sizes.items():
    checks.check_whole(size, 'batch size', low=1)
    checks.check_whole(number, 'inputs timed', low=size, high=flags.num_inputs)
  # Written as a negation, so that NaN is refused.
  if not flags.quality_drop >= 0:
    raise ValueError(f'quality_drop is {flags.quality_drop}; give 0 or more')
  loops = decoding.check_depth_loops(flags.depth_loops.split(','))
  clock_flags.check_loops(loops, sizes)


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  run = runs.load_run(flags.run_dir)
  inputs = text_inputs.read_inputs(
    flags.tokens,
    run,
    number=flags.num_inputs,
    max_length=flags.max_length,
    metric=flags.metric,
  )
  flags.num_inputs = len(inputs.sources)
  entries, left_out = _entries(flags, run, inputs)
  kept = _kept(flags, run, inputs, left_out)
  measuring = adaptive_rows.Systems(
    run,
    inputs,
    names=_names(flags),
    depth_loops=flags.depth_loops.split(','),
    num_repeats=flags.num_repeats,
    say=_say,
  )
  kept.put(measuring.full())
  if flags.oracles:
    for row in adaptive_oracles.rows_of(
      flags.oracles,
      _names(flags),
      run_dir=flags.run_dir,
      tokens=flags.tokens,
      max_length=inputs.max_length,
      trained_length=run.feature_lengths['targets'],
      num_inputs=flags.num_inputs,
      metric=inputs.metric,
      cost_of_layers=measuring.cost_of_layers,
    ):
      kept.put(row)
  adaptive_steps.measure(
    measuring,
    entries,
    kept,
    clock_flags.timed_sizes(flags),
    drop=flags.quality_drop,
    say=_say,
  )
  return kept.measured()


def _names(flags: argparse.Namespace) -> tuple[str, str]:
  """Returns what rows call the data and the model."""
  folder = os.path.basename(os.path.normpath(flags.run_dir))
  return flags.title or folder, flags.model


def _entries(
  flags: argparse.Namespace, run: runs.LoadedRun, inputs: text_inputs.Inputs
) -> tuple[list[adaptive_certificates.Entry], list[str]]:
  """Returns the settings that are measured, and what is left out, in words."""
  about = adaptive_settings.Model(
    run_dir=flags.run_dir,
    num_layers=run.config.num_decoder_layers,
    vocab_size=run.config.vocab_size,
    source_length=token_inputs.bucket(max(map(len, inputs.sources))),
    max_length=inputs.max_length,
  )
  systems, left_out = adaptive_entries.systems_of(
    about,
    [*filter(None, map(str.strip, flags.systems.split(';')))],
    most=flags.settings_per_system,
  )
  for line in left_out:
    _say(line)
  entries = adaptive_certificates.entries_of(
    systems, flags.run_dir, [*filter(None, flags.certificates.split(','))]
  )
  for entry in entries:
    arena_entries.check_holds(
      entry.certified, run, max_length=inputs.max_length
    )
  return entries, left_out


def _kept(
  flags: argparse.Namespace,
  run: runs.LoadedRun,
  inputs: text_inputs.Inputs,
  left_out: Sequence[str],
) -> kept_rows.KeptRows:
  """Returns what was measured before, of the same model and inputs."""
  return kept_rows.KeptRows(
    flags,
    {**run.context(), 'max_length': inputs.max_length, 'metric': inputs.metric},
    names=_names(flags),
    left_out=left_out,
    order=(
      records.FULL_SYSTEM,
      *adaptive_settings.SYSTEMS,
      records.ORACLE_SYSTEM,
    ),
    device=jax.devices()[0].device_kind,
    dtype=run.config.dtype,
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    if flags.show is None:
      measured = [_run(flags)]
    else:
      paths = flags.show.split(',')
      measured = [measured_rows.read(path, SystemRow) for path in paths]
  except (OSError, ValueError) as error:
    sys.exit(f'adaptive_systems: {error}')
  shown = adaptive_table.table(*measured, every=flags.every)
  print(reporting.tables.with_notes(shown))
  if flags.picture:
    rows = [row for one in measured for row in one.rows]
    reporting.save_figure(reporting.system_figure(rows), flags.picture)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
  main()

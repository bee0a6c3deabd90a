"""Every method of this library on the same model and inputs, in one table.

  python -m calm_jax.benchmarks.arena --run_dir=runs/e2e_nlg --title=e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --tuned=tuned,tuned_16 \
    --certificates=runs/e2e_nlg/measures/margin/textual/certificate.json,\
runs/e2e_nlg/measures/wide_0/textual/certificate.json --output=arena.json

Reads what earlier jobs left: certificates of `calm_jax.cli.calibrate`, and of
folders that `calm_jax.cli.tune` wrote in the run its choice and the fastest of
each lossless policy. Decodes inputs of a token file (see calm_jax.cli.tokenize)
by each of them and says whether what was promised is kept on them, how good the
outputs are, what they cost by the ledger, and what they take on the clock of
this machine, by the fastest of the depth loops, batch size by batch size, in
turns with our own full decode. With --peers, Hugging Face's T5 on PyTorch and
CTranslate2 (float32 and int8) enter with the same weights, where installed.
With --t5x_calm=0.6, so does T5X's own CALM (t5x/contrib/calm), where it is on
the Python path: at full depth, and by its softmax margin at these thresholds,
beside our margin, with the paper's projected K/V and with T5X's.

Needs no gin, seqio or TensorFlow, but rouge-score (the extra `metrics`).

  python -m calm_jax.benchmarks.arena --show=arena_a.json,arena_b.json \
    --picture=arena.png

makes one table and one picture of several runs, and --add_to=arena_a.json in
place of --output measures some rows later than the others, which stay.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence

import jax

from calm_jax import checks, decoding, records, reporting, runs
from calm_jax.benchmarks import (
  arena_additions,
  arena_entries,
  arena_table,
  clock_flags,
  measured_rows,
  peers,
  t5x_calm,
  text_inputs,
)
from calm_jax.benchmarks.arena_rows import Arena
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.records import ArenaRow


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('arena', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('title', None, 'what the table calls it; its folder if not given')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('certificates', '', 'certificates of the run, separated by commas')
  add('tuned', '', 'folders of tunings in the run, separated by commas')
  add('num_inputs', 200, 'inputs that are decoded', type=int)
  add('batch_sizes', '1,16,64', 'rows decoded together, by commas')
  add('timed_inputs', '8,32,64', 'inputs timed at each batch size, by commas')
  add('max_length', None, 'most tokens of an output; as trained', type=int)
  add('metric', None, 'of distance and quality; by the alphabet if not given')
  add('num_repeats', 3, 'turns; medians are compared', type=int)
  add('depth_loops', 'unrolled,compacting', 'tried, by commas')
  parser.add_argument(
    '--peers', action='store_true', help='other programs too, if installed'
  )
  add('t5x_calm', '', "thresholds of T5X's own CALM, if installed, by commas")
  add('output', None, 'a JSON file to write')
  add('add_to', None, 'a JSON file of the arena that gets these rows, too')
  add('show', None, 'print these JSON files, by commas, and measure nothing')
  add('picture', None, 'with --show: an image file to write')
  return parser.parse_args(arguments)


def _batch_sizes(flags: argparse.Namespace) -> dict[int, int]:
  """Returns batch size -> inputs timed at it.

  Raises:
    ValueError: for what nothing can be timed by.
  """
  sizes = clock_flags.timed_sizes(flags, spare=False)
  if not sizes:
    raise ValueError(
      f'batch_sizes {flags.batch_sizes!r} has none; give some, such as 1,16'
    )
  for size, number in sizes.items():
    checks.check_whole(size, 'batch size', low=1)
    checks.check_whole(number, 'inputs timed', low=size)
  loops = decoding.check_depth_loops(flags.depth_loops.split(','))
  clock_flags.check_loops(loops, sizes)
  return sizes


def _thresholds(flags: argparse.Namespace) -> list[float]:
  """Returns the thresholds of T5X's CALM, [] where it is not to enter.

  Raises:
    ValueError: for one that is no number from 0 up to 1; at 1 ours never
      leaves, and T5X's does where a confidence is rounded to it.
  """
  found = []
  for text in filter(None, flags.t5x_calm.split(',')):
    try:
      found.append(float(text))
    except ValueError:
      found.append(math.nan)
    if not 0 <= found[-1] < 1:
      raise ValueError(
        f'--t5x_calm has the threshold {text!r}; give numbers from 0 up to 1, '
        'without 1, separated by commas'
      )
  return found


def _entries(
  flags: argparse.Namespace, thresholds: Sequence[float]
) -> list[arena_entries.Entry]:
  """Returns every way of this library that the flags name."""
  entries = [arena_entries.full_model()]
  entries += arena_entries.of_certificates(
    flags.run_dir, [*filter(None, flags.certificates.split(','))]
  )
  for folder in filter(None, flags.tuned.split(',')):
    entries += arena_entries.of_tuning(flags.run_dir, folder)
  entries += arena_entries.of_margins(thresholds)
  return arena_entries.each_once(entries)


def _peers(
  flags: argparse.Namespace,
  run: runs.LoadedRun,
  folder: str,
  *,
  thresholds: Sequence[float],
  max_length: int,
) -> dict[str, peers.Decode]:
  """Returns the other programs that are asked for and installed."""
  found: dict[str, peers.Decode] = {}
  if flags.peers:
    found.update(
      peers.installed_peers(
        run.params,
        run.config,
        os.path.join(folder, 'huggingface'),
        max_length=max_length,
      )
    )
  if thresholds:
    try:
      found.update(
        t5x_calm.of_model(
          run.params,
          run.config,
          max_length=max_length,
          thresholds={
            one: arena_entries.RELEASED.format(one) for one in thresholds
          },
          full=arena_entries.FULL,
        )
      )
    except ImportError as error:
      print(f"arena: T5X's CALM is left out: {error}", file=sys.stderr)
  return found


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens, or --show')
  for name in ('num_inputs', 'num_repeats', 'max_length'):
    if getattr(flags, name) is not None:
      checks.check_whole(getattr(flags, name), name, low=1)
  title = flags.title or os.path.basename(os.path.normpath(flags.run_dir))
  before = None
  if flags.add_to:
    before = measured_rows.read(flags.add_to, ArenaRow)
    arena_additions.check_same_inputs(
      before, vars(flags), title, path=flags.add_to
    )
  sizes, thresholds = _batch_sizes(flags), _thresholds(flags)
  run = runs.load_run(flags.run_dir)
  entries = _entries(flags, thresholds)
  inputs = text_inputs.read_inputs(
    flags.tokens,
    run,
    number=flags.num_inputs,
    max_length=flags.max_length,
    metric=flags.metric,
  )
  for entry in entries:
    arena_entries.check_holds(entry, run, max_length=inputs.max_length)
  arena = Arena(
    run,
    inputs,
    title=title,
    depth_loops=decoding.check_depth_loops(flags.depth_loops.split(',')),
    num_repeats=flags.num_repeats,
  )
  with tempfile.TemporaryDirectory() as folder:
    decode_peers = _peers(
      flags,
      run,
      folder,
      thresholds=thresholds,
      max_length=inputs.max_length,
    )
    rows = arena.measure(entries, decode_peers, sizes)
  measured = measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=run.config.dtype,
  )
  if before is None:
    return measured
  return arena_additions.added(before, measured, path=flags.add_to)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    if flags.add_to and (flags.output or flags.show):
      raise ValueError('give --add_to without --output and --show')
    if flags.show is None:
      measured = [_run(flags)]
    else:
      paths = flags.show.split(',')
      measured = [measured_rows.read(path, ArenaRow) for path in paths]
  except (OSError, ValueError) as error:
    sys.exit(f'arena: {error}')
  if output := flags.output or flags.add_to:
    records.write_json(output, measured[0])
  print(reporting.tables.with_notes(arena_table.table(*measured)))
  if flags.picture:
    figure = reporting.arena_figure(
      [row for one in measured for row in one.rows]
    )
    reporting.save_figure(figure, flags.picture)


if __name__ == '__main__':
  main()

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

Needs no gin, seqio or TensorFlow, but rouge-score (the extra `metrics`).

  python -m calm_jax.benchmarks.arena --show=arena_a.json,arena_b.json \
    --picture=arena.png

makes one table and one picture of several runs.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence

import jax

from calm_jax import decoding, records, reporting, runs
from calm_jax.benchmarks import (
  arena_entries,
  arena_table,
  measured_rows,
  peers,
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
  add('output', None, 'a JSON file to write')
  add('show', None, 'print these JSON files, by commas, and measure nothing')
  add('picture', None, 'with --show: an image file to write')
  return parser.parse_args(arguments)


def _batch_sizes(flags: argparse.Namespace) -> dict[int, int]:
  """Returns batch size -> inputs timed at it.

  Raises:
    ValueError: if there are not as many of one as of the other.
  """
  sizes, counts = (
    [int(number) for number in text.split(',')]
    for text in (flags.batch_sizes, flags.timed_inputs)
  )
  if len(sizes) != len(counts):
    raise ValueError(
      f'batch_sizes are {sizes} and timed_inputs {counts}; give equally many'
    )
  return dict(zip(sizes, counts, strict=True))


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens, or --show')
  sizes = _batch_sizes(flags)
  run = runs.load_run(flags.run_dir)
  entries = [arena_entries.full_model()]
  entries += arena_entries.of_certificates(
    flags.run_dir, [*filter(None, flags.certificates.split(','))]
  )
  for folder in filter(None, flags.tuned.split(',')):
    entries += arena_entries.of_tuning(flags.run_dir, folder)
  entries = arena_entries.each_once(entries)
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
    title=flags.title or os.path.basename(os.path.normpath(flags.run_dir)),
    depth_loops=decoding.check_depth_loops(flags.depth_loops.split(',')),
    num_repeats=flags.num_repeats,
  )
  with tempfile.TemporaryDirectory() as folder:
    decode_peers = {}
    if flags.peers:
      decode_peers = peers.installed_peers(
        run.params,
        run.config,
        os.path.join(folder, 'huggingface'),
        max_length=inputs.max_length,
      )
    rows = arena.measure(entries, decode_peers, sizes)
  return measured_rows.of_this_process(
    rows,
    flags,
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
      measured = [measured_rows.read(path, ArenaRow) for path in paths]
  except (OSError, ValueError) as error:
    sys.exit(f'arena: {error}')
  if flags.output:
    records.write_json(flags.output, measured[0])
  print(reporting.tables.with_notes(arena_table.table(*measured)))
  if flags.picture:
    figure = reporting.arena_figure(
      [row for one in measured for row in one.rows]
    )
    reporting.save_figure(figure, flags.picture)


if __name__ == '__main__':
  main()

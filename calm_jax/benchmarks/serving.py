"""Measures a stream of requests served with early exit: how much, how soon.

  python -m calm_jax.benchmarks.serving --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --threshold=0.6 \
    --batch_sizes=1,4,16 --output=serving.json

Serves the inputs of a token file (see calm_jax.cli.tokenize), which all wait
from the beginning, in slots that are refilled as their rows end
(`decoding.decode_queue`): with the full model and with early exit at the given
threshold of the softmax margin, as in arXiv 2407.20272, which goes on through
the layers until all sequences of the batch have passed, and as here
(`benchmarks.serving_ways`). Says tokens per second, and how long a token of a
request waits for its next. All in turns. Needs no gin, seqio or TensorFlow.

  python -m calm_jax.benchmarks.serving --show=serving_a.json,serving_b.json \
    --picture=serving.png

makes one table and one picture of several runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import jax

from calm_jax import (
  checkpoints,
  checks,
  model,
  records,
  reporting,
)
from calm_jax.benchmarks import (
  measured_rows,
  serving_rows,
  serving_table,
  serving_ways,
  token_inputs,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.records import ServingRow


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('serving', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('title', None, 'what the table calls it; its folder if not given')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('num_inputs', 128, 'inputs of it that are served', type=int)
  add('batch_sizes', '1,4,16', 'slots, by commas')
  add('max_length', 64, 'most tokens of an output', type=int)
  add('threshold', 0.8, 'of the softmax margin', type=float)
  add('steps', 8, 'tokens between two looks of our own way', type=int)
  add('num_repeats', 3, 'turns; medians are reported', type=int)
  add('output', None, 'a JSON file to write')
  add('show', None, 'print these JSON files, by commas, and measure nothing')
  add('picture', None, 'an image file to write')
  return parser.parse_args(arguments)


def _sizes(text: str) -> list[int]:
  """Returns numbers that commas separate."""
  try:
    return [int(size) for size in text.split(',')]
  except ValueError:
    raise ValueError(
      f'batch_sizes {text!r} must be whole numbers, separated by commas'
    ) from None


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens, or --show')
  checks.check_whole(flags.num_inputs, 'num_inputs', low=1)
  sizes = _sizes(flags.batch_sizes)
  params, config, about = checkpoints.load_params(flags.run_dir)
  sources = token_inputs.read_sources(flags.tokens, flags.num_inputs, about)
  rows = serving_rows.measure(
    model.as_layered_decoder(config),
    params,
    serving_rows.Stream(
      sources, token_inputs.bucket(max(map(len, sources))), flags.max_length
    ),
    serving_ways.ways(flags.threshold, steps=flags.steps),
    run=flags.title or os.path.basename(os.path.normpath(flags.run_dir)),
    batch_sizes=sizes,
    num_repeats=flags.num_repeats,
  )
  return measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    num_inputs=len(sources),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes, prints and draws."""
  flags = _parse(arguments)
  try:
    if flags.show is None:
      measured = [_run(flags)]
    else:
      paths = flags.show.split(',')
      measured = [measured_rows.read(path, ServingRow) for path in paths]
  except (OSError, ValueError) as error:
    sys.exit(f'serving: {error}')
  if flags.output:
    records.write_json(flags.output, measured[0])
  print(reporting.tables.with_notes(serving_table.table(*measured)))
  if flags.picture:
    figure = reporting.serving_figure(
      [row for one in measured for row in one.rows]
    )
    reporting.save_figure(figure, flags.picture)


if __name__ == '__main__':
  main()

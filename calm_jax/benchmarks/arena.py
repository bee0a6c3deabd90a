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
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  costs,
  decoding,
  evaluation,
  model,
  records,
  reporting,
  runs,
)
from calm_jax.benchmarks import (
  arena_entries,
  arena_table,
  measured_rows,
  peers,
  token_inputs,
  whole_outputs,
)
from calm_jax.benchmarks.arena_entries import Entry
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.data import token_files
from calm_jax.evaluation import seen_text, text_metrics
from calm_jax.interfaces import BoundDecoder
from calm_jax.records import ArenaClock, ArenaRow
from calm_jax.tokenizer import cut_input

_OTHER = 'other program'


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
  """What is decoded.

  Attributes:
    sources: N inputs, token ids with EOS.
    references: N texts.
    max_length: T, the most tokens of an output.
    metric: the text metric of distance and quality.
  """

  sources: Sequence[np.ndarray]
  references: Sequence[str]
  max_length: int
  metric: str


class Arena:
  """One model and its inputs, for whoever enters."""

  def __init__(
    self,
    run: runs.LoadedRun,
    inputs: Inputs,
    *,
    title: str,
    depth_loops: Sequence[str],
    num_repeats: int,
  ):
    """Takes a run and what is decoded; `title` is what a table calls it."""
    self._run = run
    self._inputs = inputs
    self._title = title
    self._depth_loops = depth_loops
    self._num_repeats = num_repeats
    self._bound: dict[Any, BoundDecoder] = {}

  def measure(
    self,
    entries: Sequence[Entry],
    decode_peers: Mapping[str, peers.Decode],
    batch_sizes: Mapping[int, int],
  ) -> list[ArenaRow]:
    """Returns a row for each entry and each other program.

    Args:
      entries: the full model first.
      decode_peers: as `peers.installed_peers` returns.
      batch_sizes: B -> how many inputs the clock measures at it.
    """
    texts = {
      name: self._texts(
        np.concatenate(
          [
            decode(part)
            for part in whole_outputs.fixed_batches(self._inputs.sources)
          ]
        )
      )
      for name, decode in decode_peers.items()
    }
    found = {}
    for entry in entries:
      _say(f'decoding by {entry.name}')
      found[entry.name] = whole_outputs.decode_all(
        self._bind(entry.weights),
        self._inputs.sources,
        entry.policy,
        self._inputs.max_length,
        suppressed_tokens=self._run.suppressed_tokens,
      )
    full = found[entries[0].name]
    clocks = [
      self._clock(entries, decode_peers, size, number)
      for size, number in batch_sizes.items()
    ]
    full_texts = self._texts(full.tokens)
    rows = [
      self._row(
        entry.name,
        _kind(entry),
        self._texts(found[entry.name].tokens),
        full_texts,
        entry.promises,
        clocks,
        error_rate=entry.error_rate,
        mean_layers=_layers(found[entry.name]),
        cost=self._flops(found[entry.name]) / self._flops(full),
      )
      for entry in entries
    ]
    return rows + [
      self._row(name, _OTHER, said, full_texts, (), clocks)
      for name, said in texts.items()
    ]

  def _bind(self, weights, depth_loop: str | None = None) -> BoundDecoder:
    """Returns the decoder with such weights; each is prepared once."""
    key = weights, depth_loop
    if key not in self._bound:
      self._bound[key] = decoding.bind(
        model.as_layered_decoder(self._run.config),
        runs.int8_params(self._run, weights),
        depth_loop=depth_loop and decoding.DEPTH_LOOPS[depth_loop],
        weights=weights,
      )
    return self._bound[key]

  def _texts(self, tokens: np.ndarray) -> list[str]:
    """Returns the N outputs as texts."""
    rows = tokens[: len(self._inputs.sources)]
    decode = self._run.tokenizer.decode
    return [decode(token_inputs.without_padding(row)) for row in rows]

  def _flops(self, result: decoding.DecodeResult) -> float:
    """Returns the decoder's operations per token, by the ledger."""
    cost = costs.decode_cost(
      self._run.config,
      result.work,
      source_length=token_inputs.bucket(max(map(len, self._inputs.sources))),
    )
    once = cost.flops['encoder'] + cost.flops['cross_fill']
    return (cost.total_flops - once) / float(result.lengths.sum())

  def _row(
    self,
    name: str,
    kind: str,
    texts: Sequence[str],
    full_texts: Sequence[str],
    promises: Sequence[records.PromisedLoss],
    clocks: Sequence[Mapping[str, ArenaClock]],
    *,
    error_rate: float = math.nan,
    mean_layers: float = math.nan,
    cost: float = math.nan,
  ) -> ArenaRow:
    references = [[one] for one in self._inputs.references]

    def losses(loss, metric):
      return evaluation.get_loss(loss, metric).of_texts(
        texts, full_texts, references
      )

    metric = text_metrics.get_metric(self._inputs.metric)
    outcomes = []
    for one in promises:
      found = losses(one.loss, one.metric or self._inputs.metric)
      outcomes.append(
        records.PromiseOutcome(
          **dataclasses.asdict(one),
          mean=float(found.mean()),
          standard_error=float(found.std(ddof=1) / math.sqrt(len(found))),
        )
      )
    return ArenaRow(
      run=self._title,
      name=name,
      kind=kind,
      outcomes=tuple(outcomes),
      error_rate=error_rate,
      distance=float(losses('textual', self._inputs.metric).mean()),
      quality=100
      * float(
        np.mean(
          [
            metric(text, wanted)
            for text, wanted in zip(texts, references, strict=True)
          ]
        )
      ),
      metric=self._inputs.metric,
      mean_layers=mean_layers,
      cost=cost,
      clocks=tuple(one[name] for one in clocks),
    )

  def _clock(
    self,
    entries: Sequence[Entry],
    decode_peers: Mapping[str, peers.Decode],
    batch_size: int,
    num_inputs: int,
  ) -> dict[str, ArenaClock]:
    """Measures everybody at one batch size."""
    batches = token_inputs.whole_batches(
      self._inputs.sources[:num_inputs], batch_size
    )
    loops = [
      name
      for name in self._depth_loops
      # One row has nothing to be compacted with.
      if batch_size > 1 or name != 'compacting'
    ]
    bound = {
      weights: {name: self._bind(weights, name) for name in loops}
      for weights in dict.fromkeys(entry.weights for entry in entries)
    }
    timings = evaluation.time_decode(
      bound[None],
      [{'encoder_input_tokens': batch} for batch in batches],
      {
        entry.name: evaluation.OfModel(entry.policy, bound[entry.weights])
        for entry in entries
      },
      max_length=self._inputs.max_length,
      baseline=entries[0].name,
      suppressed_tokens=self._run.suppressed_tokens,
      num_repeats=self._num_repeats,
      progress=_say,
    )
    found = {
      one.name: ArenaClock(
        batch_size,
        one.depth_loop,
        one.milliseconds_per_step / batch_size,
        one.speed_up,
      )
      for one in timings
    }
    full = timings[0].milliseconds_per_step
    for name, decode in decode_peers.items():
      _say(f'timing {name} at batch {batch_size}')
      took = peers.milliseconds_per_step(decode, batches, self._num_repeats)
      found[name] = ArenaClock(batch_size, '-', took / batch_size, full / took)
    return found


def _kind(entry: Entry) -> str:
  if entry.name == arena_entries.FULL:
    return 'full'
  return 'lossless' if entry.lossless else 'certified'


def _layers(result: decoding.DecodeResult) -> float:
  """Returns the layers run per token, those that caught up included."""
  work = result.work
  return float((work.attention + work.caught_up).sum() / result.lengths.sum())


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


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


def _inputs(flags: argparse.Namespace, run: runs.LoadedRun) -> Inputs:
  """Returns the inputs of a token file, cut as wherever the run decodes."""
  examples = token_files.read_npz(flags.tokens)

  def rows(name):
    ends = examples[f'{name}_offsets'][1 : flags.num_inputs + 1]
    return np.split(examples[f'{name}_ids'][: ends[-1]], ends[:-1])

  references = [
    run.tokenizer.decode(token_inputs.without_padding(row))
    for row in rows('targets')
  ]
  return Inputs(
    sources=[
      cut_input(row, run.feature_lengths['inputs']) for row in rows('inputs')
    ],
    references=references,
    max_length=flags.max_length or run.feature_lengths['targets'],
    metric=flags.metric or seen_text.default_metric(references),
  )


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
  inputs = _inputs(flags, run)
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

"""Measures what exact keys and values are worth, for a trained model.

  python -m calm_jax.benchmarks.exactness --run_dir=runs/narrow \
    --tokens=runs/narrow/tokens/test.npz --thresholds=0.9,0.7,0.5,0.3

Decodes inputs of a token file (see calm_jax.cli.tokenize) with the full model
and by the softmax margin at each threshold (Eq. 5 of CALM, temperature 4) in
three ways: with keys and values of layers not run projected from exit states
(CALM), with exact ones (`CatchUp`), and as drafts that are checked
(`VerifyEvery`); with `--draft_head` also as drafts of a trained head, with
`--first_layers` as those of the model's first layers in 8 bits (`DraftAhead`),
for which there is no threshold. Says how far outputs are from
the full model's, how many layers run, and what that takes at batch 1. Needs no
gin, seqio or TensorFlow, but rouge-score (the extra `metrics`).
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, evaluation, exits, interfaces, model, runs
from calm_jax.benchmarks import (
  exactness_table,
  measured_rows,
  token_inputs,
  whole_outputs,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.exactness_table import ExactnessRow
from calm_jax.benchmarks.peers import Decode, installed_peers
from calm_jax.evaluation import stopwatch

_FULL = 'full model'


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
  """One way of decoding.

  Attributes:
    name: see `ExactnessRow.way`.
    threshold: of the margin; NaN for the full model.
    policy: decodes the outputs.
    fills: policies of the same outputs; the fastest one is timed.
  """

  name: str
  threshold: float
  policy: decoding.ComputePolicy
  fills: tuple[decoding.ComputePolicy, ...]


def ways(
  thresholds: Sequence[float],
  *,
  max_length: int,
  drafts: int,
  ahead: Mapping[str, decoding.DraftAhead] | None = None,
) -> Iterator[Way]:
  """Yields what is compared, the full model first.

  Args:
    thresholds: of the margin.
    max_length: T.
    drafts: the most between two checks, of drafts by early exits.
    ahead: what else drafts, by names of ways.
  """
  full = decoding.ComputePolicy()
  yield Way(_FULL, math.nan, full, (full,))
  exact = decoding.CatchUp()
  for name, verification in (ahead or {}).items():
    policy = decoding.ComputePolicy(
      cache_fill=decoding.CatchUp((verification.tokens,)),
      verification=verification,
    )
    yield Way(name, math.nan, policy, (policy,))
  for threshold in thresholds:
    decaying = exits.DecayingThreshold(
      threshold, temperature=4.0, max_length=max_length
    )
    margin = exits.ConfidenceExit(exits.SoftmaxMargin(), decaying)
    eager, deferred, exactly = (
      decoding.ComputePolicy(exit_rule=margin, cache_fill=fill)
      for fill in (full.cache_fill, decoding.DeferredExitState(), exact)
    )
    verified = dataclasses.replace(
      exactly,
      cache_fill=decoding.CatchUp((drafts,)),
      verification=decoding.VerifyEvery(drafts),
    )
    yield Way('projected', threshold, eager, (eager, deferred))
    yield Way('exact', threshold, exactly, (exactly,))
    yield Way('verified', threshold, verified, (verified,))


def measure(
  bound: interfaces.BoundDecoder,
  sources: Sequence[np.ndarray],
  detokenize: Any,
  compared: Sequence[Way],
  *,
  max_length: int,
  timed_inputs: int,
  num_repeats: int,
  peers: Mapping[str, Decode] | None = None,
) -> list[ExactnessRow]:
  """Decodes and times everything.

  Args:
    bound: the decoder with its parameters.
    sources: token ids of the inputs, EOS included.
    detokenize: ids without padding and EOS -> text.
    compared: see `ways`.
    max_length: T.
    timed_inputs: how many of the inputs are timed, one by one.
    num_repeats: turns; medians are reported.
    peers: other programs, see `peers.installed_peers`.
  """
  results = {}
  for way in compared:
    print(f'{way.name} at {way.threshold:g}', file=sys.stderr, flush=True)
    results[way] = whole_outputs.decode_all(
      bound, sources, way.policy, max_length
    )
  seconds = _seconds(
    bound,
    sources[:timed_inputs],
    compared,
    max_length,
    num_repeats,
    peers or {},
  )
  loss = evaluation.get_loss('textual', 'rouge_l')
  texts = {
    way: [
      detokenize(token_inputs.without_padding(row)) for row in result.tokens
    ]
    for way, result in results.items()
  }
  full = compared[0]
  rows = []
  for way, result in results.items():
    work = jax.tree.map(np.sum, result.work)
    num_tokens = result.lengths.sum()
    timed = result.lengths[:timed_inputs].sum()
    per_token = {
      name: seconds[name] / results[name].lengths[:timed_inputs].sum()
      for name in (full, way)
    }
    rows.append(
      ExactnessRow(
        way=way.name,
        threshold=way.threshold,
        mean_exit_layer=float(
          result.exit_layers[result.exit_layers > 0].mean()
        ),
        layers_run=float((work.attention + work.caught_up) / num_tokens),
        distance=float(loss.of_texts(texts[way], texts[full]).mean()),
        same_outputs=float(
          (result.tokens == results[full].tokens).all(axis=1).mean()
        ),
        accepted=float(work.accepted / work.cycles)
        if work.cycles
        else math.nan,
        milliseconds_per_token=float(1e3 * seconds[way] / timed),
        speed_up=float(per_token[full] / per_token[way]),
      )
    )
  others = _peer_rows(
    peers or {}, sources[:timed_inputs], results[full], seconds, full
  )
  return [*rows, *others]


def _peer_rows(peers, sources, result, seconds, full) -> Iterator[ExactnessRow]:
  """Yields what other programs took for the sources that were timed."""
  timed = len(sources)
  lengths, layers = result.lengths[:timed], result.exit_layers.max()
  for name, decode in peers.items():
    same = [
      np.array_equal(
        token_inputs.without_padding(decode(batch)[0]),
        token_inputs.without_padding(tokens),
      )
      for batch, tokens in zip(
        _one_by_one(sources), result.tokens[:timed], strict=True
      )
    ]
    yield ExactnessRow(
      way=name,
      threshold=math.nan,
      mean_exit_layer=float(layers),
      layers_run=float(layers),
      distance=math.nan,
      same_outputs=float(np.mean(same)),
      accepted=math.nan,
      milliseconds_per_token=float(1e3 * seconds[name] / lengths.sum()),
      speed_up=float(seconds[full] / seconds[name]),
    )


def _one_by_one(sources: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns sources as batches of one."""
  return [token_inputs.whole_batches([source], 1)[0] for source in sources]


def _seconds(
  bound, sources, compared, max_length, num_repeats, peers
) -> Mapping[Any, float]:
  """Returns what all timed sources take one by one, by the fastest fill."""
  batches = _one_by_one(sources)

  def run(policy):
    for batch in batches:
      jax.device_get(
        decoding.generate(bound, batch, policy=policy, max_length=max_length)
      )

  def run_peer(decode):
    for batch in batches:
      decode(batch)

  timed = {
    (way, number): functools.partial(run, policy)
    for way in compared
    for number, policy in enumerate(way.fills)
  }
  timed |= {
    (name, 0): functools.partial(run_peer, decode)
    for name, decode in peers.items()
  }
  for number, warm_up in enumerate(timed.values()):
    print(f'compiling {number + 1} of {len(timed)}', file=sys.stderr)
    warm_up()
  seconds = stopwatch.interleaved_seconds(timed, num_repeats)
  medians = {key: statistics.median(turns) for key, turns in seconds.items()}
  fastest: dict[Any, float] = {}
  for (way, _), median in medians.items():
    fastest[way] = min(median, fastest.get(way, math.inf))
  return fastest


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('exactness', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train', required=True)
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize', required=True)
  add('thresholds', '0.9,0.7,0.5,0.3', 'of the margin, separated by commas')
  add('num_inputs', 200, 'inputs that are decoded', type=int)
  add('timed_inputs', 8, 'inputs of them that are timed', type=int)
  add('drafts', 8, 'most drafts between two checks', type=int)
  add('draft_head', None, 'the folder of a draft head in run_dir')
  add('first_layers', None, 'so many in 8 bits draft', type=int)
  add('head_drafts', 4, 'most drafts of these between two checks', type=int)
  add('stop_below', 0.0, 'a draft of lower probability is checked', type=float)
  parser.add_argument(
    '--peers',
    action='store_true',
    help='time other programs as well, where they are installed',
  )
  add('max_length', 64, 'most tokens of an output', type=int)
  add('num_repeats', 5, 'turns; medians are reported', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _ahead(flags: argparse.Namespace) -> dict[str, decoding.DraftAhead]:
  """Returns what drafts ahead, by names of ways."""
  drafters = {}
  if flags.draft_head is not None:
    drafters['draft head'] = runs.load_draft_head(
      flags.run_dir, name=flags.draft_head
    )
  if flags.first_layers is not None:
    name = f'first {flags.first_layers} layers in 8 bits'
    drafters[name] = runs.load_first_layers(
      flags.run_dir, layers=flags.first_layers
    )
  when = decoding.VerifyEvery(flags.head_drafts, flags.stop_below)
  return {
    name: decoding.DraftAhead(drafter, when)
    for name, drafter in drafters.items()
  }


def _peers(
  flags: argparse.Namespace, loaded: runs.LoadedRun
) -> Mapping[str, Decode]:
  """Returns other programs with the run's weights, if they are wanted."""
  if not flags.peers:
    return {}
  folder = os.path.join(tempfile.mkdtemp(), 'checkpoint')
  return installed_peers(
    loaded.params, loaded.config, folder, max_length=flags.max_length
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    loaded = runs.load_run(flags.run_dir)
    thresholds = [float(number) for number in flags.thresholds.split(',')]
    compared = list(
      ways(
        thresholds,
        max_length=flags.max_length,
        drafts=flags.drafts,
        ahead=_ahead(flags),
      )
    )
    rows = measure(
      decoding.bind(model.as_layered_decoder(loaded.config), loaded.params),
      token_inputs.read_sources(
        flags.tokens,
        flags.num_inputs,
        {'context': {'feature_lengths': loaded.feature_lengths}},
      ),
      loaded.tokenizer.decode,
      compared,
      max_length=flags.max_length,
      timed_inputs=flags.timed_inputs,
      num_repeats=flags.num_repeats,
      peers=_peers(flags, loaded),
    )
  except (OSError, ValueError) as error:
    sys.exit(f'exactness: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype=loaded.config.dtype
  )
  measured_rows.publish(measured, exactness_table.table, flags.output)


if __name__ == '__main__':
  main()

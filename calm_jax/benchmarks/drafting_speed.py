"""Measures what checked drafts are worth, by how many of them are accepted.

  python -m calm_jax.benchmarks.drafting_speed --shapes=t5_v1_1_base \
    --acceptances=0.8,0.9 --output=drafting.json

Random weights agree about nothing. Here the layers behind the draft's say less
the smaller a factor on what they add, found so that about the wanted share of
drafts is accepted; what a layer costs stays the same. Where drafts are read
over the first ids alone, the logits of the others are small in all rows, as
those of rare tokens are. Drafts leave after a fixed layer and are checked by
`VerifyEvery`; the full model decodes in turns with them and must say the same
tokens. Batch 1, greedy, no end of sequence. Needs JAX and nothing else.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import decoding, exits, interfaces, model
from calm_jax.array_types import PyTree
from calm_jax.benchmarks import drafting_table, measured_rows
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.drafting_table import DraftingRow
from calm_jax.evaluation import stopwatch

# What a layer adds to the residual stream is made by these.
_OUTPUTS = (
  ('self_attention', 'out'),
  ('encoder_decoder_attention', 'out'),
  ('mlp', 'wo'),
)
_TRIES = 8


@dataclasses.dataclass(frozen=True)
class _Job:
  """What is decoded, whatever the weights."""

  config: model.T5Config
  params: PyTree
  exit_layer: int
  inputs: np.ndarray
  max_length: int

  def start(self, factor: float, policy: decoding.ComputePolicy):
    """Returns a function that starts a decode with weaker upper layers."""
    bound = decoding.bind(
      model.as_layered_decoder(self.config),
      with_weak_layers(self.params, self.exit_layer, factor),
      depth_loop=decoding.UnrolledDepthLoop(),
    )
    return functools.partial(
      decoding.start,
      bound,
      self.inputs,
      policy=policy,
      max_length=self.max_length,
      eos_id=-1,
    )


def with_weak_layers(params: PyTree, exit_layer: int, factor: float) -> PyTree:
  """Returns parameters whose layers behind `exit_layer` add less.

  Args:
    params: of a T5.
    exit_layer: E; layers of index E and up are changed.
    factor: on their output projections.
  """
  decoder = dict(params['decoder'])
  for name, layer in decoder.items():
    if not name.startswith('layers_') or int(name[7:]) < exit_layer:
      continue
    layer = dict(layer)
    for part, output in _OUTPUTS:
      kernel = layer[part][output]['kernel']
      layer[part] = {**layer[part], output: {'kernel': kernel * factor}}
    decoder[name] = layer
  return {**params, 'decoder': decoder}


def with_rare_tokens(params: PyTree, count: int) -> PyTree:
  """Returns parameters of an untied T5 that says its first `count` ids alone.

  The logits of the others are a third of what they were.
  """
  kernel = params['decoder']['logits_dense']['kernel']
  kernel = jnp.where(jnp.arange(kernel.shape[1]) < count, kernel, kernel / 3)
  decoder = {**params['decoder'], 'logits_dense': {'kernel': kernel}}
  return {**params, 'decoder': decoder}


def acceptance(work: interfaces.Work) -> float:
  """Returns the share of drafts that the full model accepts.

  Of those that it had a say in: behind the first one that it does not accept,
  a check says nothing of the others.
  """
  rejected = work.cycles * (work.accepted < work.verified)
  accepted = work.accepted.sum()
  return float(accepted / max(1, accepted + rejected.sum()))


def accepting(job: _Job, wanted: float) -> float:
  """Returns a factor with which about that share of drafts is accepted."""
  policy = _drafting(job.exit_layer, 1)
  low, high = 0.0, 1.0
  for _ in range(_TRIES):
    factor = (low + high) / 2
    work = jax.device_get(_decode_all(job.start(factor, policy)()).work)
    if acceptance(work) >= wanted:
      low = factor
    else:
      high = factor
  return low


def measure(
  shape: str,
  *,
  acceptances: Sequence[float],
  ways: Sequence[tuple[int, int]],
  exit_layer: int,
  source_length: int,
  target_length: int,
  dtype: str = 'float32',
  num_repeats: int = 5,
  seed: int = 0,
  config: model.T5Config | None = None,
) -> Iterator[DraftingRow]:
  """Yields the rows of one shape.

  Args:
    shape: a name of `T5Config.named`, or what to call `config`.
    acceptances: shares of drafts to be accepted, in (0, 1).
    ways: the most drafts between two checks, and over how many first ids they
      are read, 0 for all.
    exit_layer: E, where drafts leave, 1..L-1.
    source_length: S.
    target_length: T.
    dtype: of activations and matrices.
    num_repeats: turns.
    seed: of weights and sources.
    config: another model than the named one.

  Raises:
    ValueError: for acceptances that are none.
  """
  config = config or model.T5Config.named(shape, dtype=dtype)
  if bad := [share for share in acceptances if not 0 < share < 1]:
    raise ValueError(f'acceptance is {bad[0]}; give shares between 0 and 1')
  if not 0 < exit_layer < config.num_decoder_layers:
    raise ValueError(
      f'exit_layer is {exit_layer}; give one in 1..'
      f'{config.num_decoder_layers - 1}, before the last layer'
    )
  rng = np.random.default_rng(seed)
  params = model.init_params(config, jax.random.key(seed))
  if few := [count for _, count in ways if count]:
    params = with_rare_tokens(params, min(few))
  job = _Job(
    config,
    params,
    exit_layer,
    rng.integers(2, config.vocab_size, (1, source_length)),
    target_length,
  )
  for wanted in acceptances:
    factor = accepting(job, wanted)
    policies = {(0, 0): decoding.ComputePolicy()}
    policies |= {
      (most, count): _drafting(exit_layer, most, count) for most, count in ways
    }
    runs = {
      way: stopwatch.AfterStart(job.start(factor, policy), _decode_all)
      for way, policy in policies.items()
    }
    results = {way: jax.device_get(run()) for way, run in runs.items()}
    seconds = stopwatch.interleaved_seconds(runs, num_repeats)
    medians = {way: statistics.median(turns) for way, turns in seconds.items()}
    full = (0, 0)
    for way, result in results.items():
      work = result.work
      most, count = way
      yield DraftingRow(
        shape=shape,
        exit_layer=exit_layer if most else config.num_decoder_layers,
        drafts=most,
        candidates=count,
        accepted=acceptance(work),
        tokens_per_check=float(target_length / max(1, work.cycles.sum())),
        same_tokens=bool((result.tokens == results[full].tokens).all()),
        milliseconds_per_token=1e3 * medians[way] / target_length,
        speed_up=medians[full] / medians[way],
      )


def _drafting(
  exit_layer: int, most: int, candidates: int = 0
) -> decoding.ComputePolicy:
  readout = decoding.FirstTokens(candidates) if candidates else None
  return decoding.ComputePolicy(
    readout=readout or decoding.FullVocabulary(),
    exit_rule=exits.FixedExit(exit_layer),
    cache_fill=decoding.CatchUp((most,)),
    verification=decoding.VerifyEvery(most),
  )


def _decode_all(state: decoding.DecodeState) -> decoding.DecodeResult:
  return decoding.finish(decoding.advance(state))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('drafting_speed', __doc__)
  add = parser.add
  add('shapes', 't5_v1_1_base', 'models, separated by commas')
  add('acceptances', '0.8,0.9', 'shares of drafts accepted, by commas')
  add('drafts', '2,4,8', 'most drafts between two checks, by commas')
  add('candidates', '0', 'first ids that drafts are read over; 0 for all')
  add('exit_layer', 2, 'where drafts leave', type=int)
  add('source_length', 64, 'tokens of a source', type=int)
  add('target_length', 96, 'tokens decoded', type=int)
  add('dtype', 'float32', 'float32 or bfloat16')
  add('num_repeats', 5, 'turns; medians are reported', type=int)
  add('seed', 0, 'of weights and sources', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  rows = []
  try:
    for shape in flags.shapes.split(','):
      print(shape, file=sys.stderr, flush=True)
      rows += measure(
        shape,
        acceptances=[float(one) for one in flags.acceptances.split(',')],
        ways=[
          (int(most), int(count))
          for count in flags.candidates.split(',')
          for most in flags.drafts.split(',')
        ],
        exit_layer=flags.exit_layer,
        source_length=flags.source_length,
        target_length=flags.target_length,
        dtype=flags.dtype,
        num_repeats=flags.num_repeats,
        seed=flags.seed,
      )
  except ValueError as error:
    sys.exit(f'drafting_speed: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype=flags.dtype
  )
  measured_rows.publish(measured, drafting_table.table, flags.output)


if __name__ == '__main__':
  main()

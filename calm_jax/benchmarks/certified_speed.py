"""Measures what certificates are worth on the clock, for a trained model.

  python -m calm_jax.benchmarks.certified_speed --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --certificates=runs/e2e_nlg/measures/\
softmax_margin/textual/certificate.json,runs/e2e_nlg/measures/classifier/\
textual/certificate.json

Decodes inputs of a token file (see calm_jax.cli.tokenize) with the full model
and at the certified threshold of each certificate, with the fill it was made
with and with the deferred one, in the weights it was made with, in turns, each
by its fastest depth loop. Beside
each speed-up stand its ceiling by memory traffic and where the time goes. With
--peers, Hugging Face's T5 on PyTorch and CTranslate2 (float32 and int8) decode
the same inputs with the same weights, where installed. Needs no gin, seqio or
TensorFlow.
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  checkpoints,
  costs,
  decoding,
  evaluation,
  interfaces,
  model,
  records,
  runs,
)
from calm_jax.benchmarks import (
  ablations,
  bandwidth,
  certified_policies,
  certified_table,
  clock_flags,
  measured_rows,
  peers,
  token_inputs,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.certified_table import CertifiedRow
from calm_jax.benchmarks.shares import Shares
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import stopwatch
from calm_jax.quantisation import Int8Weights

FULL = 'full model'


@dataclasses.dataclass(frozen=True)
class _Model:
  """What is decoded with."""

  decoder: interfaces.LayeredDecoder
  params: Any
  config: model.T5Config
  max_length: int


def measure(
  run: _Model,
  chosen: Mapping[str, tuple[Certificate, decoding.ComputePolicy]],
  batches: Sequence[np.ndarray],
  *,
  num_repeats: int = 3,
  depth_loops: Sequence[str] = tuple(decoding.DEPTH_LOOPS),
  decode_peers: Mapping[str, peers.Decode] | None = None,
) -> list[CertifiedRow]:
  """Measures the full model, all policies and the peers at one batch size.

  Args:
    run: the model.
    chosen: name -> certificate and its policy.
    batches: inputs [B, S], all of one shape.
    num_repeats: turns; medians are compared.
    depth_loops: keys of `decoding.DEPTH_LOOPS` to try.
    decode_peers: see `peers.installed_peers`.
  """
  named = {FULL: decoding.ComputePolicy()}
  named |= {name: policy for name, (_, policy) in chosen.items()}
  batch_size, source_length = batches[0].shape
  # First, so that a peer that fails does so before anything is measured.
  peer_tokens = {
    name: [decode(batch) for batch in batches]
    for name, decode in (decode_peers or {}).items()
  }
  weights = {FULL: None}
  weights |= {name: runs.weights_of(made) for name, (made, _) in chosen.items()}
  bound = {
    kept: _bind(run, depth_loops, kept)
    for kept in dict.fromkeys(weights.values())
  }
  timings = evaluation.time_decode(
    bound[None],
    [{'encoder_input_tokens': batch} for batch in batches],
    {
      name: evaluation.OfModel(policy, bound[weights[name]])
      for name, policy in named.items()
    },
    max_length=run.max_length,
    baseline=FULL,
    num_repeats=num_repeats,
    bytes_of=costs.bytes_of(run.config, source_length),
    progress=lambda line: print(line, file=sys.stderr, flush=True),
  )
  rate = 1e9 * bandwidth.measure()
  rows, references = [], []
  for timing in timings:
    policy = named[timing.name]
    mine = bound[weights[timing.name]][timing.depth_loop]
    details = _Details(run, mine, policy, num_repeats)
    tokens = [details.tokens(batch) for batch in batches]
    references = references or tokens
    rows.append(
      CertifiedRow(
        name=timing.name,
        **_promised(chosen.get(timing.name, (None,))[0]),
        batch_size=batch_size,
        depth_loop=timing.depth_loop,
        mean_exit_layer=timing.mean_exit_layer,
        milliseconds_per_step=timing.milliseconds_per_step,
        speed_up=timing.speed_up,
        ceiling=timing.ceiling,
        of_bound=details.of_bound(batches[0], rate),
        shares=details.shares(batches[0]),
        same_tokens=_agreement(references, tokens),
      )
    )
  full = timings[0]
  for name, decode in (decode_peers or {}).items():
    tokens = peer_tokens[name]
    rows.append(
      _peer_row(name, decode, batches, tokens, references, full, num_repeats)
    )
  return rows


def _bind(
  run: _Model, depth_loops: Sequence[str], weights: Int8Weights | None
) -> dict[str, interfaces.BoundDecoder]:
  """Returns the decoder with such weights, bound to each depth loop."""
  return {
    name: decoding.bind(
      run.decoder,
      run.params,
      depth_loop=decoding.DEPTH_LOOPS[name],
      weights=weights,
    )
    for name in depth_loops
  }


def _promised(certificate: Certificate | None) -> dict[str, Any]:
  """Returns the fields of a row that follow from its certificate."""
  if certificate is None:
    return {'threshold': math.nan}
  threshold = certificate.threshold
  return {
    # That of a plan, or of all layers in 8 bits, has none.
    'threshold': math.nan if threshold is None else threshold,
    'loss': certificate.context.get('loss', ''),
    'tolerance': certificate.tolerance,
    'error_rate': certificate.error_rate,
    'promises': tuple(
      records.PromisedLoss(
        loss=bound.loss, metric=bound.metric, tolerance=bound.tolerance
      )
      for bound in certificate.promises
    ),
  }


@dataclasses.dataclass(frozen=True)
class _Details:
  """What is asked of one policy besides its speed-up."""

  run: _Model
  bound: interfaces.BoundDecoder
  policy: decoding.ComputePolicy
  num_repeats: int

  def _call(self, function, batch):
    return function(
      self.bound,
      batch,
      policy=self.policy,
      max_length=self.run.max_length,
    )

  def tokens(self, batch: np.ndarray) -> np.ndarray:
    """Returns the tokens [B, T] of a batch."""
    return np.asarray(self._call(decoding.generate, batch).tokens)

  def of_bound(self, batch: np.ndarray, rate: float) -> float:
    """Returns the time without its start over what its bytes take."""
    result = self._call(decoding.generate, batch)
    seconds = stopwatch.interleaved_seconds(
      {
        'whole': functools.partial(self._call, decoding.generate, batch),
        'start': functools.partial(self._call, decoding.start, batch),
      },
      self.num_repeats,
    )
    whole, start = (statistics.median(turns) for turns in seconds.values())
    bytes_of = costs.bytes_of(self.run.config, batch.shape[1])
    _, moved = bytes_of(result.work, self.bound.weights, policy=self.policy)
    return (whole - start) / (moved / rate)

  def shares(self, batch: np.ndarray) -> Shares:
    """Returns where the time of a batch goes."""
    result = self._call(decoding.generate, batch)
    return ablations.measure_shares(
      self.bound,
      batch,
      np.asarray(result.exit_layers),
      policy=self.policy,
      num_repeats=self.num_repeats,
    )


def _peer_row(name, decode, batches, tokens, references, full, num_repeats):
  """Measures a peer against the full model's time per step."""
  milliseconds = peers.milliseconds_per_step(decode, batches, num_repeats)
  return CertifiedRow(
    name=name,
    threshold=math.nan,
    batch_size=len(batches[0]),
    depth_loop='-',
    mean_exit_layer=full.mean_exit_layer,
    milliseconds_per_step=milliseconds,
    speed_up=full.milliseconds_per_step / milliseconds,
    ceiling=math.nan,
    of_bound=math.nan,
    shares=None,
    same_tokens=_agreement(references, tokens),
  )


def _agreement(references, tokens) -> float:
  """Returns the share of the reference's tokens that are the same."""
  pairs = zip(references, tokens, strict=True)
  same = sum(int(((a == b) & (a != 0)).sum()) for a, b in pairs)
  return same / sum(int((a != 0).sum()) for a in references)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('certified_speed', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train', required=True)
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize', required=True)
  add('certificates', '', 'certificates of the run, separated by commas')
  add('batch_sizes', '1,16', 'rows decoded together, separated by commas')
  add('num_inputs', 16, 'inputs decoded at each batch size', type=int)
  add('max_length', 64, 'most tokens of an output', type=int)
  add('num_repeats', 3, 'turns; medians are compared', type=int)
  add('depth_loops', ','.join(decoding.DEPTH_LOOPS), 'tried, by commas')
  parser.add_argument(
    '--peers', action='store_true', help='other programs too, if installed'
  )
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    sizes = clock_flags.whole_numbers('batch_sizes', flags.batch_sizes)
    loops = decoding.check_depth_loops(flags.depth_loops.split(','))
    clock_flags.check_loops(loops, sizes)
    params, config, about = checkpoints.load_params(flags.run_dir)
    run = _Model(
      model.as_layered_decoder(config), params, config, flags.max_length
    )
    chosen = certified_policies.read_policies(
      flags.run_dir, [*filter(None, flags.certificates.split(','))]
    )
    sources = token_inputs.read_sources(flags.tokens, flags.num_inputs, about)
    with tempfile.TemporaryDirectory() as folder:
      decode_peers = None
      if flags.peers:
        decode_peers = peers.installed_peers(
          params,
          config,
          os.path.join(folder, 'huggingface'),
          max_length=flags.max_length,
        )
      rows = [
        row
        for size in sizes
        for row in measure(
          run,
          chosen,
          token_inputs.whole_batches(sources, size),
          num_repeats=flags.num_repeats,
          depth_loops=loops,
          decode_peers=decode_peers,
        )
      ]
  except (OSError, ValueError) as error:
    sys.exit(f'certified_speed: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype=config.dtype
  )
  measured_rows.publish(measured, certified_table.table, flags.output)


if __name__ == '__main__':
  main()

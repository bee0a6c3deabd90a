"""What does a grid of thresholds cost, in passes of the full model?

  python -m calm_jax.benchmarks.calibration_passes --run_dir=runs/narrow \
    --tokens=runs/narrow/tokens/calibration.npz --max_length=18

Decodes inputs of a token file with the full model and at 20 thresholds from
0.95 to 0, none left out, as a calibration with exact K/V does, by the softmax
margin (Eq. 5 of CALM, temperature 4) and by state similarity. A pass is the
full model decoded by itself after each turn, nothing else looked at. The first
turn runs its programs for the first time; compiling is left out of all.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from calm_jax import decoding, evaluation, exits, interfaces, model, runs
from calm_jax.benchmarks import token_inputs
from calm_jax.benchmarks.arguments import Arguments


@dataclasses.dataclass(frozen=True)
class Turn:
  """What one turn took.

  Attributes:
    pass_seconds: the full model by itself.
    full: its decode in the calibration, in passes.
    total: the calibration, its full model included, without scoring, in passes.
    decoded: (input, threshold) pairs that anything was decoded for.
  """

  pass_seconds: float
  full: float
  total: float
  decoded: int


def rules(max_length: int) -> dict[str, interfaces.ExitRule]:
  """Returns the exit rules that are measured, by name."""
  decaying = exits.DecayingThreshold(
    1.0, temperature=4.0, max_length=max_length
  )
  return {
    'softmax margin': exits.ConfidenceExit(exits.SoftmaxMargin(), decaying),
    'state similarity': exits.ConfidenceExit(exits.StateSimilarity(), 1.0),
  }


def measure(
  bound: interfaces.BoundDecoder,
  inputs: Sequence[np.ndarray],
  rule: interfaces.ExitRule,
  *,
  detokenize: Callable[[Sequence[int]], str],
  max_length: int,
  num_turns: int,
) -> Iterator[Turn]:
  """Yields what each turn took.

  Args:
    bound: the decoder with its parameters.
    inputs: batches [B, S], no input twice.
    rule: the exit rule, at any threshold.
    detokenize: ids without padding and EOS -> text.
    max_length: T.
    num_turns: how many turns.
  """
  batches = [{'encoder_input_tokens': batch} for batch in inputs]
  decode = evaluation.DatasetDecoder(
    bound=bound, detokenize=detokenize, max_length=max_length
  )
  policy = decoding.ComputePolicy(exit_rule=rule, cache_fill=decoding.CatchUp())
  plan = evaluation.CalibrationPlan(metric='exact_match')
  for _ in range(num_turns):
    cost = evaluation.run_calibration(
      decode, batches, policy, plan, full_grid=True
    ).cost
    alone = decode(batches, policy=decoding.full_model(policy)).seconds.sum()
    settings = sum(setting.seconds for setting in cost.settings)
    yield Turn(
      pass_seconds=float(alone),
      full=float(cost.full_seconds / alone),
      total=float((cost.full_seconds + cost.trace_seconds + settings) / alone),
      decoded=sum(setting.num_decoded for setting in cost.settings),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('calibration_passes', __doc__ or '')
  add: Any = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train', required=True)
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize', required=True)
  add('num_inputs', 1024, 'inputs that are decoded', type=int)
  add('batch_size', 64, 'rows of a batch', type=int)
  add('max_length', 64, 'most tokens of an output', type=int)
  add('num_turns', 4, 'turns, the first of them cold', type=int)
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and prints."""
  flags = _parse(arguments)
  try:
    loaded = runs.load_run(flags.run_dir)
    sources = token_inputs.read_sources(
      flags.tokens,
      flags.num_inputs,
      {'context': {'feature_lengths': loaded.feature_lengths}},
    )
    bound = decoding.bind(
      model.as_layered_decoder(loaded.config), loaded.params
    )
    for name, rule in rules(flags.max_length).items():
      turns = measure(
        bound,
        token_inputs.whole_batches(sources, flags.batch_size),
        rule,
        detokenize=loaded.tokenizer.decode,
        max_length=flags.max_length,
        num_turns=flags.num_turns,
      )
      for number, turn in enumerate(turns, 1):
        print(
          f'{name}, turn {number}: {turn.total:.2f} passes, '
          f'{turn.full:.2f} of them the full model, {turn.decoded} decoded; '
          f'a pass takes {turn.pass_seconds:.2f} s',
          flush=True,
        )
  except (OSError, ValueError) as error:
    sys.exit(f'calibration_passes: {error}')


if __name__ == '__main__':
  main()

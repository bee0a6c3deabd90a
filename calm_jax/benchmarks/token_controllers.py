"""Asks whether layers are chosen better for a token by looking at its state.

  python -m calm_jax.benchmarks.token_controllers --run_dir=runs/e2e_nlg \
    --train=runs/e2e_nlg/tokens/train.npz \
    --tokens=runs/e2e_nlg/tokens/test.npz --output=token_controllers.json

A controller says in every decoder layer, by the state that enters it, whether
the layer runs for the token ("Dynamic layer selection in decoder-only
transformers", arXiv 2410.20022): a linear map, trained for the labels of the
training rows through straight-through Gumbel-softmax, while the model stays as
it is. Its control is the same with a constant input, so that it can only learn
which layers are worth running for all tokens. Both come to the same mean
layers, and are judged, teacher forced, on other rows, beside the first layers,
layers that lie evenly, random ones and the best of these on training rows.
Needs neither gin, seqio nor TensorFlow.
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from calm_jax import checks, runs, training
from calm_jax.benchmarks import (
  controller_rows,
  controller_training,
  measured_rows,
  token_controllers_table,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.controller_rows import Judge
from calm_jax.benchmarks.controller_training import ControllerPlan
from calm_jax.records import ControllerRow


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('token_controllers', __doc__)
  add = parser.add
  plan = ControllerPlan()
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('train', None, 'an .npz of calm_jax.cli.tokenize to train on')
  add('tokens', None, 'one to judge by, of other rows')
  add('num_inputs', 200, 'rows to judge by', type=int)
  add('num_seen', 200, 'training rows that prices and routes go by', type=int)
  add('budgets', None, 'mean layers, by commas; L/2 and 3L/4 if not given')
  add('num_seeds', 3, 'trainings of each kind', type=int)
  add('steps', plan.num_steps, 'of a training', type=int)
  add('batch_size', 16, 'rows of a step or pass', type=int)
  add('learning_rate', plan.learning_rate, 'of Adam', type=float)
  add('price', plan.price, 'of missing the budget', type=float)
  add('random_routes', 20, 'random routes of each budget', type=int)
  add('seed', 0, 'of all that is drawn', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  for name in ('run_dir', 'train', 'tokens'):
    if getattr(flags, name) is None:
      raise ValueError('give --run_dir, --train and --tokens')
  if os.path.realpath(flags.train) == os.path.realpath(flags.tokens):
    raise ValueError(
      f'--train and --tokens are both {flags.tokens}; judge by other rows than '
      'those trained on'
    )
  for name in ('num_inputs', 'num_seen', 'num_seeds', 'batch_size'):
    checks.check_whole(getattr(flags, name), name, low=1)
  for name in ('random_routes', 'seed'):
    checks.check_whole(getattr(flags, name), name, low=0)


def _budgets(text: str | None, num_layers: int) -> list[int]:
  """Returns numbers of layers that leave a choice, rising.

  Raises:
    ValueError: for what is none, or not in 3..L-1.
  """
  if num_layers < 4:
    raise ValueError(
      f'the model has {num_layers} decoder layers; the first and the last '
      'always run, so controllers need at least 4'
    )
  if text is None:
    halves = num_layers // 2, 3 * num_layers // 4
    return sorted({min(max(number, 3), num_layers - 1) for number in halves})
  try:
    found = sorted({int(number) for number in text.split(',')})
  except ValueError:
    raise ValueError(
      f'budgets are {text!r}; give whole numbers of layers, such as 4,6'
    ) from None
  for number in found:
    checks.check_whole(number, 'budget', low=3, high=num_layers - 1)
  return found


def _rows(
  run: runs.LoadedRun, path: str, batch_size: int, number: int
) -> list[dict[str, Any]]:
  """Returns the first rows of a token file, in batches."""
  batches = _batches(run, path, batch_size, shuffle=False, num_epochs=1)
  kept = []
  for batch in batches:
    weights = batch['decoder_loss_weights'].copy()
    weights[max(number, 0) :] = 0
    kept.append({**batch, 'decoder_loss_weights': weights})
    number -= len(weights)
    if number <= 0:
      break
  return kept


def _batches(
  run: runs.LoadedRun, path: str, batch_size: int, **options: Any
) -> Iterator[dict[str, Any]]:
  return training.npz_batches(
    path, batch_size, feature_lengths=run.feature_lengths, **options
  )


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  plan = ControllerPlan(flags.steps, flags.learning_rate, flags.price)
  run = runs.load_run(flags.run_dir)
  config, num_layers = run.config, run.config.num_decoder_layers
  budgets = _budgets(flags.budgets, num_layers)
  seen, unseen = (
    Judge(config, run.params, _rows(run, path, flags.batch_size, number))
    for path, number in (
      (flags.train, flags.num_seen),
      (flags.tokens, flags.num_inputs),
    )
  )

  def train(budget, reads_states, seed):
    sees = 'the state' if reads_states else 'no state'
    said = f'{budget} layers, a controller that sees {sees}, seed {seed}'
    print(said, file=sys.stderr, flush=True)
    return controller_training.train_controller(
      config,
      run.params,
      _batches(run, flags.train, flags.batch_size, seed=seed),
      plan,
      budget=budget,
      reads_states=reads_states,
      seed=seed,
    )

  rows: list[ControllerRow] = [
    controller_rows.row_of(
      functools.partial(train, budget),
      seen,
      unseen,
      run=os.path.basename(os.path.normpath(flags.run_dir)),
      budget=budget,
      num_layers=num_layers,
      random_routes=flags.random_routes,
      seeds=range(flags.seed, flags.seed + flags.num_seeds),
    )
    for budget in budgets
  ]
  every = unseen.of_route(tuple(range(num_layers)))
  flags.num_inputs = len(every.tokens)
  return measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    num_tokens=int(every.tokens.sum()),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    measured = _run(flags)
  except (OSError, ValueError) as error:
    sys.exit(f'token_controllers: {error}')
  measured_rows.publish(measured, token_controllers_table.table, flags.output)


if __name__ == '__main__':
  main()

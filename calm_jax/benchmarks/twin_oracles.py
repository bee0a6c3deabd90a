"""Asks how far the best choice of feed-forwards per token gets, and by luck.

  python -m calm_jax.benchmarks.twin_oracles --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --output=twin_oracles.json

The run has small twins (`calm_jax.cli.train_twins`). Teacher forced with the
targets of a token file, every pattern of the decoder's feed-forwards, each
layer with none, its own or its twin, gives each token a log-probability: all
patterns of up to 6 layers, drawn ones of more. Under budgets of mean blocks the
table holds the best single pattern, the best blind mix of two, and an oracle
that picks one pattern per token by its label, as in Duo-LLM (arXiv 2410.10846).
What of the oracle's gain is the winner's curse says the same oracle on permuted
labels, and one after what patterns are to single tokens has been dealt out to
others. Needs neither gin, seqio nor TensorFlow.
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model, runs, training
from calm_jax.benchmarks import measured_rows, twin_patterns
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.reporting import tables
from calm_jax.small_twins import SmallTwins


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('twin_oracles', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory with small twins')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('twins', 'small_twins', 'their folder in run_dir')
  add('num_tokens', 300, 'target tokens that are scored', type=int)
  add('num_patterns', 300, 'patterns drawn, of over 6 layers', type=int)
  add('num_permutations', 3, 'of the labels', type=int)
  add('batch_size', 16, 'rows of a pass', type=int)
  add('seed', 0, 'of patterns and permutations', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _check(flags: argparse.Namespace) -> None:
  """Raises ValueError for flags that nothing can be measured by."""
  if flags.run_dir is None or flags.tokens is None:
    raise ValueError('give --run_dir and --tokens')
  for name in ('num_tokens', 'num_patterns', 'num_permutations', 'batch_size'):
    checks.check_whole(getattr(flags, name), name, low=1)
  checks.check_whole(flags.seed, 'seed', low=0)


def label_scores(
  config: model.T5Config,
  params: Any,
  twins: SmallTwins,
  batches: Sequence[Mapping[str, Any]],
  patterns: Sequence[twin_patterns.Pattern],
  *,
  num_permutations: int,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns log-probabilities of tokens' labels, and of permuted ones.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    batches: with T5X's keys, not packed.
    patterns: R of them.
    num_permutations: K, of the labels of all target tokens.
    rng: draws them.

  Returns:
    float [N, R] and [K, N, R].

  Raises:
    ValueError: if there is no target token.
  """
  where = [batch['decoder_loss_weights'] > 0 for batch in batches]
  labels = np.concatenate(
    [
      batch['decoder_target_tokens'][kept]
      for batch, kept in zip(batches, where, strict=True)
    ]
  )
  if not labels.size:
    raise ValueError('there is no target token to score')
  asked = [labels, *(rng.permutation(labels) for _ in range(num_permutations))]
  score = jax.jit(functools.partial(_scores, config))
  starts = np.cumsum([0, *(kept.sum() for kept in where)])
  found = np.zeros((len(asked), len(labels), len(patterns)))
  for number, (batch, kept) in enumerate(zip(batches, where, strict=True)):
    here = slice(starts[number], starts[number + 1])
    of_batch = np.zeros((len(asked), *kept.shape), np.int32)
    of_batch[:, kept] = [one[here] for one in asked]
    for place, pattern in enumerate(patterns):
      chosen = np.array(pattern, np.int32)[None, None]
      logs = np.asarray(score(params, twins, dict(batch), chosen, of_batch))
      found[:, here, place] = logs[:, kept]
  return found[0], found[1:]


def _scores(config, params, twins, batch, choices, labels):
  """Returns the log-probabilities of labels [K, B, T] with a pattern."""
  states = training.chosen_states(config, params, twins, batch, choices)
  logs = jax.nn.log_softmax(model.output_logits(config, params, states[-1]))
  return jnp.take_along_axis(logs[None], labels[..., None], axis=-1)[..., 0]


def first_tokens(
  batches: Iterator[Mapping[str, Any]], number: int
) -> list[dict[str, Any]]:
  """Returns the batches that hold the first target tokens, others weightless.

  Args:
    batches: with T5X's keys.
    number: how many target tokens.
  """
  kept = []
  for batch in batches:
    weights = np.array(batch['decoder_loss_weights'])
    order = np.cumsum(weights > 0).reshape(weights.shape)
    weights[order > number] = 0
    kept.append({**batch, 'decoder_loss_weights': weights})
    number -= int((weights > 0).sum())
    if number <= 0:
      break
  return kept


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  _check(flags)
  run = runs.load_run(flags.run_dir)
  config, twins = run.config, runs.load_twins(flags.run_dir, name=flags.twins)
  patterns = twin_patterns.patterns_of(
    config.num_decoder_layers, count=flags.num_patterns, seed=flags.seed
  )
  batches = training.npz_batches(
    flags.tokens,
    flags.batch_size,
    feature_lengths=run.feature_lengths,
    shuffle=False,
    num_epochs=1,
  )
  scores, permuted = label_scores(
    config,
    run.params,
    twins,
    first_tokens(batches, flags.num_tokens),
    patterns,
    num_permutations=flags.num_permutations,
    rng=np.random.default_rng(flags.seed),
  )
  flags.num_tokens = len(scores)
  rows = twin_patterns.rows_of(
    patterns,
    scores,
    permuted,
    own_units=config.mlp_dim,
    twin_units=twins.hidden_units,
    run=os.path.basename(os.path.normpath(flags.run_dir)),
    seed=flags.seed,
  )
  return measured_rows.of_this_process(
    rows,
    flags,
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    num_patterns=len(patterns),
    twin_units=twins.hidden_units,
    own_units=config.mlp_dim,
  )


def table(measured: measured_rows.Measured) -> tables.Table:
  """Returns the table of a run, losses in nats per token."""
  details = measured.context.details
  return tables.Table(
    header=(
      'run',
      'blocks',
      'best single',
      'pattern',
      'blind mix',
      'oracle',
      'gain',
      'on permuted labels',
      'dealt out',
    ),
    rows=tuple(
      (
        row.run,
        f'{row.budget:g}',
        f'{-row.single:.3f}',
        ''.join(map(str, row.pattern)),
        f'{-row.mix:.3f}',
        f'{-row.oracle:.3f}',
        f'{row.gain:.3f}',
        f'{row.permuted_gain:.3f}',
        f'{row.luck:.3f}',
      )
      for row in measured.rows
    ),
    notes=(
      'blocks: the budget of a token, on the mean, in feed-forward blocks of '
      f'the model; a twin of {details["twin_units"]} hidden units is '
      f'{details["twin_units"] / details["own_units"]:.3f} of one. Losses are '
      f'in nats per token, over {measured.flags["num_tokens"]} tokens and '
      f"{details['num_patterns']} patterns; the model's own is "
      f'{-measured.rows[0].full:.3f}.',
      'pattern: for each layer 0 no feed-forward, 1 its own, 2 its twin. Best '
      'single: the one that is best for all tokens together; blind mix: '
      'likewise the best two; oracle: the best for each token by its label.',
      'gain: of the oracle over the mix; on permuted labels: the same where '
      'each token has the label of another, and no pattern can know it; dealt '
      'out: the same after what patterns are to single tokens was dealt out to '
      'others. Both are gains by luck.',
    ),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    measured = _run(flags)
  except (OSError, ValueError) as error:
    sys.exit(f'twin_oracles: {error}')
  measured_rows.publish(measured, table, flags.output)


if __name__ == '__main__':
  main()

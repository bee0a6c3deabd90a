"""Measures what inputs made to delay exits cost, without and with a budget.

  python -m calm_jax.benchmarks.abuse --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --threshold=0.6 \
    --per_request=256
  python -m calm_jax.benchmarks.abuse --run_dir=runs/banking77 \
    --tokens=runs/banking77/tokens/test.npz --heads=encoder_heads \
    --threshold=0.5 --per_request=4

Decodes inputs of a token file (see calm_jax.cli.tokenize), and inputs made of
them whose tokens are shuffled, random, or searched for
(`evaluation.delayed_inputs`, without the budget), at as many evaluations for
every search: at random, by what a client sees, and by the gradients of SAME
(arXiv 2305.12228), once of any tokens and once of a few whole words, so that
the text can still be read. The policy is early exit at the given threshold of
the softmax margin, or a certificate's; with --heads it is not tokens that
leave, but inputs, from the encoder. With the budget it is `exits.LayerBudget`
around that. The program fails if any output exceeds the budget. Needs no gin,
seqio or TensorFlow.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  checks,
  decoding,
  evaluation,
  exits,
  model,
  runs,
)
from calm_jax.benchmarks import (
  abuse_batches,
  abuse_rows,
  abuse_table,
  abuse_targets,
  certified_policies,
  encoder_exit_rules,
  measured_rows,
  token_inputs,
)
from calm_jax.benchmarks.abuse_batches import Sources
from calm_jax.benchmarks.abuse_targets import Target
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.data import token_files


def read_token_ids(path: str) -> np.ndarray:
  """Returns the ids that occur in the texts of a token file, without EOS."""
  examples = token_files.read_npz(path)
  ids = np.union1d(examples['inputs_ids'], examples['targets_ids'])
  return ids[ids > 1]


def make_rule(
  *,
  threshold: float | None,
  certificate: str | None,
  run_dir: str,
  per_request: int | None,
  per_token: int | None,
  of_encoder: bool = False,
) -> exits.LayerBudget:
  """Returns the budget around the rule of a threshold or of a certificate.

  A certificate's own budget holds where none is given.

  Args:
    threshold: of the softmax margin.
    certificate: a path.
    run_dir: the run that it is of.
    per_request: the most layers of an output.
    per_token: the most layers of a token, or of an input in an encoder.
    of_encoder: whether inputs leave an encoder by it, instead of tokens.

  Raises:
    ValueError: unless there is one of threshold and certificate, or as
      `certified_policies.read_policies`.
  """
  if (threshold is None) == (certificate is None):
    raise ValueError('give either --threshold or --certificate')
  budget = dict(per_request=per_request, per_token=per_token)
  if threshold is not None:
    rule = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
    return exits.LayerBudget(rule, **budget)
  if of_encoder:
    rule = encoder_exit_rules.certified_entry(certificate, run_dir).rule
  else:
    policies = certified_policies.read_policies(run_dir, [certificate])
    _, policy = next(iter(policies.values()))
    rule = policy.exit_rule
  if not isinstance(rule, exits.LayerBudget):
    return exits.LayerBudget(rule, **budget)
  given = {name: cap for name, cap in budget.items() if cap is not None}
  return dataclasses.replace(rule, **given)


def _target(
  flags: argparse.Namespace, run: runs.LoadedRun, sources: Sources
) -> Target:
  """Returns what the inputs are aimed at."""
  sizes: dict[str, Any] = dict(
    source_length=token_inputs.bucket(max(map(len, sources))),
    batch_size=flags.batch_size,
  )
  if flags.heads is None:
    decoder = model.as_layered_decoder(run.config)
    return abuse_targets.TokenExits(
      bound=decoding.bind(decoder, run.params),
      max_length=flags.max_length,
      detokenize=run.tokenizer.decode,
      **sizes,
    )
  encoder = model.as_layered_encoder(run.config)
  labels = runs.load_class_labels(flags.run_dir, name=flags.heads)
  classifier = evaluation.DatasetClassifier(
    encoder=encoder,
    params=encoder.prepare(run.params),
    heads=runs.load_encoder_heads(flags.run_dir, name=flags.heads),
    class_texts=labels.texts,
  )
  return abuse_targets.EncoderExits(classifier=classifier, **sizes)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('abuse', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train', required=True)
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize', required=True)
  add('heads', None, "the folder of an encoder's heads in it, to aim at these")
  add('num_inputs', 64, 'inputs of it that are decoded', type=int)
  add('batch_size', 16, 'rows decoded together', type=int)
  add('max_length', 64, 'most tokens of an output', type=int)
  add('threshold', None, 'of the softmax margin', type=float)
  add('certificate', None, 'instead, a certificate whose policy is taken')
  add('per_request', None, 'the most layers of an output', type=int)
  add('per_token', None, 'the most layers of a token, or an input', type=int)
  add('num_rounds', 12, 'how often a search changes an input', type=int)
  add('variants', 8, 'evaluations per round and input', type=int)
  add('neighbours', None, 'words that may stand for a word; all', type=int)
  add('seed', 0, 'of all that is drawn', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def _run(flags: argparse.Namespace) -> measured_rows.Measured:
  """Measures what the flags name."""
  rule = make_rule(
    threshold=flags.threshold,
    certificate=flags.certificate,
    run_dir=flags.run_dir,
    per_request=flags.per_request,
    per_token=flags.per_token,
    of_encoder=flags.heads is not None,
  )
  for name in ('num_inputs', 'batch_size'):
    checks.check_whole(getattr(flags, name), name, low=1)
  run = runs.load_run(flags.run_dir)
  lengths = {'feature_lengths': run.feature_lengths}
  sources = token_inputs.read_sources(
    flags.tokens, flags.num_inputs, {'context': lengths}
  )
  token_ids = read_token_ids(flags.tokens)
  target = _target(flags, run, sources)
  words = abuse_batches.few_words(run, target.table(), flags.neighbours)
  if words is None:
    print(
      'abuse: the vocabulary has no tokens that are words, so that nothing is '
      'said of readable inputs',
      file=sys.stderr,
    )
  rows = abuse_rows.measure(
    target,
    sources,
    token_ids,
    rule=rule,
    compared=abuse_rows.searches(
      target, token_ids, words, by_output=flags.heads is None
    ),
    effort=abuse_rows.Effort(flags.num_rounds, flags.variants, flags.seed),
  )
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
    measured = _run(flags)
  except (OSError, ValueError) as error:
    sys.exit(f'abuse: {error}')
  measured_rows.publish(measured, abuse_table.table, flags.output)
  for row in measured.rows:
    if row.use is not None:
      print(f'{row.inputs}: {row.use.describe()}')


if __name__ == '__main__':
  main()

"""Measures what inputs made to delay exits cost, without and with a budget.

  python -m calm_jax.benchmarks.abuse --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --threshold=0.6 \
    --per_request=256

Decodes inputs of a token file (see calm_jax.cli.tokenize), and inputs made of
them whose tokens are shuffled, random, or searched for in the manner of SAME
(`evaluation.delayed_inputs`, without the budget): once for the most layers per
token, which destroys the saving, once for the most per output. The policy
is early exit at the given threshold of the softmax margin, or a certificate's;
with the budget it is `exits.LayerBudget` around that. The program fails if any
output exceeds the budget. Needs no gin, seqio or TensorFlow.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import (
  checkpoints,
  checks,
  decoding,
  evaluation,
  exits,
  interfaces,
  model,
)
from calm_jax.benchmarks import (
  abuse_table,
  certified_policies,
  measured_rows,
  token_inputs,
)
from calm_jax.benchmarks.abuse_table import AbuseRow
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.data import token_files


@dataclasses.dataclass(frozen=True)
class Search:
  """How hard adversarial inputs are searched for.

  Attributes:
    num_rounds: how often an input may be changed.
    variants: trial decodes per round and input.
    seed: of all that is drawn.
  """

  num_rounds: int
  variants: int
  seed: int = 0


def measure(
  bound: interfaces.BoundDecoder,
  sources: Sequence[np.ndarray],
  token_ids: np.ndarray,
  *,
  rule: exits.LayerBudget,
  search: Search,
  batch_size: int,
  max_length: int,
) -> list[AbuseRow]:
  """Measures inputs of every kind without and with the budget.

  Args:
    bound: the decoder with its parameters.
    sources: token ids of real inputs, EOS included.
    token_ids: int [C], what inputs may be made of.
    rule: the budget around a rule with thresholds.
    search: how hard adversarial inputs are searched for.
    batch_size: rows decoded together.
    max_length: T.

  Raises:
    ValueError: naming a number that makes no sense, or if layers exceed the
      budget.
  """
  checks.check_whole(batch_size, 'batch_size', low=1)
  source_length = token_inputs.bucket(max(map(len, sources)))

  def decode(inputs, rule):
    return evaluation.decode_dataset(
      bound,
      _batches(inputs, batch_size, source_length),
      detokenize=lambda ids: '',
      max_length=max_length,
      policy=decoding.ComputePolicy(exit_rule=rule),
    )

  def searched(cost):
    return evaluation.delayed_inputs(
      sources,
      token_ids,
      lambda trials: cost(decode(trials, rule.rule)),
      **dataclasses.asdict(search),
    )

  kinds = {
    'real': list(sources),
    'shuffled': evaluation.shuffled_inputs(sources, seed=search.seed),
    'random': evaluation.random_inputs(sources, token_ids, seed=search.seed),
    'searched, per token': searched(_layers_per_token),
    'searched, per output': searched(_layers),
  }
  rows = []
  for kind, inputs in kinds.items():
    without = decode(inputs, rule.rule)
    for wrapped in (None, rule):
      result = without if wrapped is None else decode(inputs, rule)
      rows.append(_row(kind, result, without, rule=wrapped))
  whole = rows[0].saving
  return [
    dataclasses.replace(
      row, saving_lost=1 - row.saving / whole if whole else float('nan')
    )
    for row in rows
  ]


def _batches(inputs, batch_size: int, source_length: int):
  """Yields padded batches of inputs, as `evaluation.decode_dataset` wants."""
  for start in range(0, len(inputs), batch_size):
    part = inputs[start : start + batch_size]
    tokens = np.zeros((batch_size, source_length), np.int32)
    for row, source in enumerate(part):
      tokens[row, : len(source)] = source
    yield {'encoder_input_tokens': tokens, 'num_valid': len(part)}


def _layers(decoded: evaluation.DecodedDataset) -> np.ndarray:
  """Returns the layers of each output, [N]."""
  return np.maximum(decoded.exit_layers, 0).sum(axis=1)


def _layers_per_token(decoded: evaluation.DecodedDataset) -> np.ndarray:
  """Returns their mean over the tokens of each output, [N]."""
  return _layers(decoded) / decoded.lengths


def _row(kind, result, without, *, rule) -> AbuseRow:
  """Returns a row whose `saving_lost` is not yet known."""
  layers, mean = _layers(result), result.mean_exit_layer
  use = None
  if rule is not None:
    use = evaluation.budget_use(
      rule,
      result.exit_layers,
      result.confidences,
      num_layers=result.num_layers,
    )
  return AbuseRow(
    inputs=kind,
    budget=rule is not None,
    num_tokens=result.num_tokens,
    mean_exit_layer=mean,
    saving=1 - mean / result.num_layers,
    saving_lost=float('nan'),
    mean_request=float(layers.mean()),
    largest_request=int(layers.max()),
    largest_token=int(result.exit_layers.max()),
    same_outputs=float((result.tokens == without.tokens).all(axis=1).mean()),
    use=use,
  )


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
) -> exits.LayerBudget:
  """Returns the budget around the rule of a threshold or of a certificate.

  A certificate's own budget holds where none is given.

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
  policies = certified_policies.read_policies(run_dir, [certificate])
  _, policy = next(iter(policies.values()))
  rule = policy.exit_rule
  if not isinstance(rule, exits.LayerBudget):
    return exits.LayerBudget(rule, **budget)
  given = {name: cap for name, cap in budget.items() if cap is not None}
  return dataclasses.replace(rule, **given)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('abuse', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train', required=True)
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize', required=True)
  add('num_inputs', 64, 'inputs of it that are decoded', type=int)
  add('batch_size', 16, 'rows decoded together', type=int)
  add('max_length', 64, 'most tokens of an output', type=int)
  add('threshold', None, 'of the softmax margin', type=float)
  add('certificate', None, 'instead, a certificate whose policy is taken')
  add('per_request', None, 'the most layers of an output', type=int)
  add('per_token', None, 'the most layers of a token', type=int)
  add('num_rounds', 12, 'how often the search changes an input', type=int)
  add('variants', 8, 'trials per round and input', type=int)
  add('seed', 0, 'of all that is drawn', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  try:
    rule = make_rule(
      threshold=flags.threshold,
      certificate=flags.certificate,
      run_dir=flags.run_dir,
      per_request=flags.per_request,
      per_token=flags.per_token,
    )
    checks.check_whole(flags.num_inputs, 'num_inputs', low=1)
    params, config, about = checkpoints.load_params(flags.run_dir)
    rows = measure(
      decoding.bind(model.as_layered_decoder(config), params),
      token_inputs.read_sources(flags.tokens, flags.num_inputs, about),
      read_token_ids(flags.tokens),
      rule=rule,
      search=Search(flags.num_rounds, flags.variants, flags.seed),
      batch_size=flags.batch_size,
      max_length=flags.max_length,
    )
  except (OSError, ValueError) as error:
    sys.exit(f'abuse: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype=config.dtype
  )
  measured_rows.publish(measured, abuse_table.table, flags.output)
  for row in rows:
    if row.use is not None:
      print(f'{row.inputs}: {row.use.describe()}')


if __name__ == '__main__':
  main()

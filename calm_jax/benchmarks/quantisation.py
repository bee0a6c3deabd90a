"""Measures what 8-bit weights do to a model, matrix by matrix and as a whole.

  python -m calm_jax.benchmarks.quantisation --run_dir=runs/e2e_nlg \
    --tokens=runs/e2e_nlg/tokens/test.npz --keep_above=0.05

Inputs of a token file (see calm_jax.cli.tokenize) are decoded by the float
model at full depth, and its outputs teacher forced: for every matrix of the
decoder, how far products in 8 bits are from those in float, how much of that
comes from rounding the weights and how much from rounding the states, and how
far the largest number stands out of the states. Then the whole model: how far
the logits are from the float model's, at how many positions another token comes
first, and how far the outputs are that it decodes at full depth, with all
matrices in 8 bits and with each of --rules left in float (rules separated by
semicolons, expressions of one rule by commas).

--keep_above makes such a rule from the errors, prints it and measures it:
`decoding.bind(..., weights=quantisation.Int8Weights(keep=...))`. --smoothing
tries SmoothQuant. Without a run, --shape=t5_v1_1_small takes random weights and
tokens, of which nothing can be concluded for a trained model.

  python -m calm_jax.benchmarks.quantisation --show=quantisation.json

prints the tables of an earlier run.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

import jax

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.benchmarks import (
  measured_rows,
  quantisation_inputs,
  quantisation_outputs,
  quantisation_report,
  quantisation_table,
  smoothing,
)
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.quantisation_captures import Batch
from calm_jax.benchmarks.quantisation_table import (
  MatrixError,
  ModelError,
  Report,
)
from calm_jax.model import int8_params
from calm_jax.quantisation import Int8Weights, as_weights
from calm_jax.reporting import tables


def measure(
  title: str,
  config: model.T5Config,
  params: Params,
  batches: Sequence[Batch],
  *,
  weights: Int8Weights = quantisation_report.DECODER,
  rules: Sequence[Sequence[str]] = (),
  keep_above: float | None = None,
  smoothing_share: float | None = None,
  detokenize: quantisation_outputs.Detokenize = (
    quantisation_outputs.ids_as_words
  ),
) -> Report:
  """Measures a model.

  Args:
    title: what a table calls it.
    config: its shape.
    params: its parameters, float.
    batches: what it is teacher forced with.
    weights: which matrices are looked at, and brought to 8 bits.
    rules: expressions to keep in float, measured one by one.
    keep_above: relative error above which a matrix is kept, as one more rule.
    smoothing_share: see `smoothing.smoothed`; None for none.
    detokenize: ids without padding and EOS -> text, of which distances are.

  Raises:
    ValueError: for rules that match nothing, or what `smoothed` refuses.
  """
  plans = {'all': weights}
  for rule in rules:
    plans[f'all but {", ".join(rule)}'] = _keeping(weights, rule)
  trees = {name: _quantised(config, params, plans[name]) for name in plans}
  errors, largest = quantisation_report.matrix_errors(
    config, params, batches, weights=weights
  )
  if keep_above is not None:
    found = quantisation_report.matrices_above(errors, keep_above)
    name = f'all but those above {100 * keep_above:g} %'
    plans[name] = _keeping(weights, found)
    trees[name] = _quantised(config, params, plans[name])
  if smoothing_share is not None:
    name = f'all, smoothed by {smoothing_share:g}'
    tree = smoothing.smoothed(config, params, largest, share=smoothing_share)
    plans[name], trees[name] = weights, _quantised(config, tree, weights)
    errors = _with_smoothed(errors, config, tree, batches, weights)
  models = quantisation_report.model_errors(config, params, trees, batches)
  outputs = quantisation_outputs.compare_outputs(
    config, params, trees, plans, batches, detokenize
  )
  return Report(
    model=title,
    num_positions=int(sum((batch.outputs > 0).sum() for batch in batches)),
    matrices=tuple(errors),
    models=tuple(
      ModelError(
        name=name,
        keep=plans[name].keep,
        num_kept=sum(not plans[name].takes(one.path) for one in errors),
        logits=logits,
        other_argmax=others,
        other_outputs=decoded.others,
        distance=decoded.distance,
      )
      for (name, logits, others), decoded in zip(models, outputs, strict=True)
    ),
  )


def _keeping(weights: Int8Weights, rule: Sequence[str]) -> Int8Weights:
  """Returns weights of which a rule leaves matrices in float, checked."""
  keep = (*weights.keep, *rule)
  return as_weights(dataclasses.replace(weights, keep=keep)) or weights


def _quantised(
  config: model.T5Config, params: Params, weights: Int8Weights
) -> Params:
  return int8_params.quantise_params(config, params, weights)


def _with_smoothed(
  errors: Sequence[MatrixError],
  config: model.T5Config,
  params: Params,
  batches: Sequence[Batch],
  weights: Int8Weights,
) -> list[MatrixError]:
  """Returns errors with those of smoothed parameters beside them."""
  again, _ = quantisation_report.matrix_errors(
    config, params, batches, weights=weights
  )
  by_path = {one.path: one.both for one in again}
  return [
    dataclasses.replace(one, smoothed=by_path[one.path]) for one in errors
  ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('quantisation', __doc__)
  add = parser.add
  add('run_dir', None, 'a run directory of calm_jax.cli.train')
  add('tokens', None, 'an .npz of calm_jax.cli.tokenize')
  add('shape', None, 'random weights of this shape instead of a run')
  add('num_inputs', 64, 'inputs', type=int)
  add('max_length', 64, 'most tokens of an output', type=int)
  add('rules', '.*/mlp/wo;decoder/logits_dense', 'left in float, one by one')
  add('keep_above', None, 'error above which a matrix is kept', type=float)
  add('smoothing', None, 'try SmoothQuant, 0.5 for half way', type=float)
  parser.add_argument(
    '--encoder', action='store_true', help="the encoder's matrices, too"
  )
  add('seed', 0, 'of random weights and tokens', type=int)
  add('output', None, 'a JSON file to write')
  add('show', None, 'print the tables of this JSON file and measure nothing')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  if flags.show:
    _publish(measured_rows.read(flags.show, Report), None)
    return
  try:
    config, params, batches, detokenize = quantisation_inputs.read(flags)
    report = measure(
      flags.shape or os.path.basename(os.path.normpath(flags.run_dir)),
      config,
      params,
      batches,
      weights=Int8Weights(encoder=flags.encoder),
      rules=[rule.split(',') for rule in flags.rules.split(';') if rule],
      keep_above=flags.keep_above,
      smoothing_share=flags.smoothing,
      detokenize=detokenize,
    )
  except (OSError, ValueError) as error:
    sys.exit(f'quantisation: {error}')
  measured = measured_rows.of_this_process(
    [report], flags, device=jax.devices()[0].device_kind, dtype=config.dtype
  )
  _publish(measured, flags.output)


def _publish(measured: measured_rows.Measured, output: str | None) -> None:
  """Prints both tables and the rule that was made, and writes the report."""
  print(tables.with_notes(quantisation_table.model_table(measured)), end='\n\n')
  measured_rows.publish(measured, quantisation_table.matrix_table, output)
  threshold, encoder = (
    measured.flags[name] for name in ('keep_above', 'encoder')
  )
  if threshold is not None:
    keep = quantisation_report.matrices_above(
      measured.rows[0].matrices, threshold
    )
    print(f'\nabove {threshold:g}: {Int8Weights(encoder=encoder, keep=keep)}')


if __name__ == '__main__':
  main()

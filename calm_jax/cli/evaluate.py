"""Evaluates a certified early exit: a table, timings, a page to look at.

  python -m calm_jax.cli.evaluate --gin_file=runs/evaluate.gin \
    --gin_file=tasks/e2e_nlg.gin --gin_file=policies/softmax_margin.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Decodes a split that was neither trained on, selected on nor calibrated on with
the full model, the certified early exit, static exits and the oracle, and
measures wall clock against the fastest full-depth decode there is.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from calm_jax import (
  data,
  decoding,
  evaluation,
  exits,
  model,
  pipeline,
  records,
  reporting,
)
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import gin_runner, jobs
from calm_jax.evaluation import text_metrics

_LOOPS = {
  'while': decoding.WhileDepthLoop(),
  'unrolled': decoding.UnrolledDepthLoop(),
}


def run(
  *,
  model_dir: str,
  task: Any,
  policy: decoding.ComputePolicy,
  metrics: Sequence[str] = ('bleu', 'rouge_l'),
  split: str = 'test',
  batch_size: int = 32,
  max_examples: int | None = None,
  sweep_thresholds: Sequence[float] = (0.9, 0.7, 0.5, 0.3, 0.1),
  timing_batch_sizes: Sequence[int] = (1, 8),
  timing_batches: int = 8,
  timing_repeats: int = 3,
  certificate: str | None = None,
  allow_uncertified: bool = False,
  output_dir: str | None = None,
) -> records.EvaluationResult:
  """Compares ways of decoding one split.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task.
    policy: the policy that the certificate was made for.
    metrics: names in text_metrics.CORPUS_METRICS; the first is drawn.
    split: the split to decode.
    batch_size: rows decoded together.
    max_examples: use only so many examples.
    sweep_thresholds: further thresholds for the figure, which then also shows
      all static exits; () for neither.
    timing_batch_sizes: batch sizes to time; () for none.
    timing_batches: different batches timed at each size.
    timing_repeats: how often each is timed.
    certificate: path; MODEL_DIR/calibration/certificate.json if None.
    allow_uncertified: see `pipeline.apply_certificate`.
    output_dir: MODEL_DIR/evaluation if None.
  """
  unknown = [m for m in metrics if m not in text_metrics.CORPUS_METRICS]
  if unknown or not metrics:
    raise ValueError(
      f'metrics are {tuple(metrics)}; use some of '
      f'{sorted(text_metrics.CORPUS_METRICS)}'
    )
  path = certificate or os.path.join(
    model_dir, 'calibration', 'certificate.json'
  )
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no certificate at {path}; run calm_jax.cli.calibrate first'
    )
  certified = Certificate.load(path)
  output_dir = output_dir or os.path.join(model_dir, 'evaluation')
  os.makedirs(output_dir, exist_ok=True)
  gin_runner.write_operative_config(output_dir, 'evaluate.gin')
  loaded = pipeline.load_run(model_dir)
  early_policy = pipeline.apply_certificate(
    certified,
    policy,
    params=loaded.params,
    tokenizer=loaded.tokenizer,
    allow_uncertified=allow_uncertified,
  )
  batches = list(
    data.eval_batches(
      task,
      batch_size,
      feature_lengths=loaded.feature_lengths,
      split=split,
      max_examples=max_examples,
    )
  )
  decode_batches = jobs.make_decode(loaded)

  def decode(**arguments):
    return decode_batches(batches, **arguments)

  metric = text_metrics.get_metric(certified.context['metric'])
  scoring = evaluation.Scoring(
    quality={name: text_metrics.CORPUS_METRICS[name] for name in metrics},
    textual=evaluation.textual_loss(metric),
    risk=evaluation.risk_loss(metric),
  )
  compared = evaluation.decode_for_comparison(
    decode,
    early_policy,
    setting=certified.threshold,
    certified=certified.certified,
    progress=jobs.say,
  )
  full, early = compared[0].decoded, compared[1].decoded
  rows = evaluation.compare(compared, scoring=scoring) + (
    evaluation.baseline_row(
      'copy of the input',
      [text.removeprefix(loaded.prefix) for text in full.inputs_text],
      full=full,
      scoring=scoring,
    ),
  )
  samples, selection = evaluation.sample_outputs(
    early,
    full,
    losses=scoring.textual(early, full),
    pieces=loaded.tokenizer.pieces,
  )
  result = records.EvaluationResult(
    task=data.as_task(task).name,
    split=split,
    num_examples=full.num_examples,
    num_layers=loaded.config.num_decoder_layers,
    primary_metric=metrics[0],
    rows=rows,
    context=jobs.run_context(
      loaded.config,
      checkpoint_step=loaded.step,
      certificate=path,
      batch_size=batch_size,
    ),
    sweep=_sweep(decode, policy, sweep_thresholds, full, scoring),
    certificate=records.CertificateSummary.of(
      certified,
      loss=certified.context['loss'],
      metric=certified.context['metric'],
      measure=type(policy.exit_rule.measure).__name__,
    ),
    timings=_timings(
      loaded,
      batches,
      {row.name: entry for row, entry in _timed(rows, policy, early_policy)},
      timing_batch_sizes,
      timing_batches,
      timing_repeats,
    ),
    samples=samples,
    sample_selection=selection,
    consistency_metric=certified.context['metric'],
  )
  _write(output_dir, result)
  return result


def _sweep(decode, policy, thresholds, full, scoring):
  """Returns further points of the figure: thresholds and static exits."""
  points = []
  for threshold in thresholds:
    early = decoding.with_threshold(policy, threshold)
    points.append((f'threshold {threshold:g}', 'early_exit', threshold, early))
  for layer in range(2, full.num_layers if thresholds else 0):
    static = dataclasses.replace(policy, exit_rule=exits.FixedExit(layer))
    points.append((f'static, layer {layer}', 'static', layer, static))
  rows = []
  for name, kind, setting, at in points:
    jobs.say(f'for the figure: {name}')
    entry = evaluation.ComparedDecode(name, kind, setting, decode(policy=at))
    rows.append(evaluation.score(entry, full=full, scoring=scoring))
  return tuple(rows)


def _timed(rows, policy, early_policy):
  """Yields the rows that are timed with their policies."""
  policies = {
    'full': decoding.full_model(policy),
    'certified': early_policy,
    'early_exit': early_policy,
  }
  for row in rows:
    if row.kind in policies:
      yield row, policies[row.kind]


def _timings(loaded, batches, policies, batch_sizes, num_batches, num_repeats):
  """Times full depth and early exit under both depth loops."""
  timings = ()
  baseline = next(iter(policies))
  for batch_size in batch_sizes:
    taken = evaluation.take_batches(
      batches, batch_size=batch_size, num_batches=num_batches
    )
    timings += evaluation.time_decode(
      model.as_layered_decoder(loaded.config),
      loaded.params,
      taken,
      policies,
      max_length=loaded.feature_lengths['targets'],
      baseline=baseline,
      eos_id=loaded.tokenizer.eos_id,
      depth_loops=_LOOPS,
      num_repeats=num_repeats,
      progress=jobs.say,
    )
  return timings


def _write(output_dir: str, result: records.EvaluationResult) -> None:
  """Writes the result, its tables and its page, and prints the table."""

  def place(name):
    return os.path.join(output_dir, name)

  records.write_json(place('result.json'), result)
  records.write_text(place('table.md'), reporting.render_markdown(result))
  reporting.write_page(place('report.html'), result)
  reporting.save_figure(reporting.quality_figure(result), place('quality.png'))
  jobs.say('\n' + reporting.render_text(result))
  jobs.say(f'report: {place("report.html")}')


if __name__ == '__main__':
  gin_runner.main('evaluate')

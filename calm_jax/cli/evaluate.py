"""Evaluates a certified early exit: a table, timings, a page to look at.

  python -m calm_jax.cli.evaluate --gin_file=runs/evaluate.gin \
    --gin_file=tasks/e2e_nlg.gin --gin_file=policies/softmax_margin.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Decodes a split that was neither trained on, selected on nor calibrated on with
the full model, the certified early exit, static exits and the oracle, and
measures wall clock against the fastest full-depth decode there is. Of several
processes each decodes its share and writes what it predicts; killed and started
again it goes on where it was.
"""

import functools
import os
from typing import Any

from calm_jax import (
  costs,
  data,
  decoding,
  evaluation,
  exits,
  records,
  reporting,
  runs,
)
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import gin_runner, jobs
from calm_jax.evaluation import corpus_metrics, text_metrics
from calm_jax.processes import collectives, speaking


def run(
  *,
  model_dir: str,
  task: Any,
  policy: decoding.ComputePolicy,
  plan: evaluation.ComparisonPlan | None = None,
  layout: evaluation.BatchLayout | None = None,
  split: str = 'test',
  max_examples: int | None = None,
  certificate: str | None = None,
  output_dir: str | None = None,
  dry_run: bool = False,
) -> records.EvaluationResult | None:
  """Compares ways of decoding one split.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task.
    policy: the policy that the certificate was made for.
    plan: metrics, figure and timings; the defaults if None.
    layout: how rows are decoded together; the defaults if None.
    split: the split to decode.
    max_examples: use only so many examples.
    certificate: path; MODEL_DIR/calibration/certificate.json if None.
    output_dir: MODEL_DIR/evaluation if None.
    dry_run: say what devices would hold, and do nothing.
  """
  plan = evaluation.ComparisonPlan() if plan is None else plan
  layout = evaluation.BatchLayout() if layout is None else layout
  if dry_run:
    speaking.say(jobs.describe_decoding(model_dir, layout))
    return None
  path = certificate or runs.certificate_path(model_dir)
  certified = _load_certificate(path, split, data.as_task(task).name)
  output_dir = output_dir or os.path.join(model_dir, 'evaluation')
  jobs.open_output(output_dir, 'evaluate.gin')
  loaded = jobs.load_run(model_dir, task)
  early_policy = runs.apply_certificate(
    certified, policy, params=loaded.params, tokenizer=loaded.tokenizer
  )
  batches = list(
    data.eval_batches(
      task,
      layout.batch_size,
      feature_lengths=loaded.feature_lengths,
      split=split,
      max_examples=max_examples,
    )
  )
  # Before anything is decoded: too few inputs for a batch show at once.
  timed_batches = [
    evaluation.take_batches(
      batches, batch_size=size, num_batches=plan.timing_batches
    )
    for size in plan.timing_batch_sizes
  ]
  decode = functools.partial(
    jobs.dataset_decoder(loaded, layout, model_dir=model_dir), batches
  )
  metric = text_metrics.get_metric(certified.context['metric'])
  scoring = evaluation.Scoring(
    quality={
      name: corpus_metrics.CORPUS_METRICS[name] for name in plan.metrics
    },
    textual=evaluation.textual_loss(metric),
    # Unclipped where that is what was certified.
    risk=evaluation.get_loss(
      'signed' if certified.context['loss'] == 'signed' else 'risk', metric
    ),
  )
  compared = evaluation.decode_for_comparison(
    decode,
    early_policy,
    setting=certified.threshold,
    certified=certified.certified,
    progress=speaking.say,
  )
  full, early = compared[0].decoded, compared[1].decoded
  _check_not_calibrated_on(path, full)
  evaluation.write_predictions(output_dir, {'full': full, 'early': early})
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
    num_layers=full.num_layers,
    primary_metric=plan.metrics[0],
    rows=_table(compared, loaded.prefix, scoring),
    context=jobs.run_context(
      loaded.config,
      checkpoint_step=loaded.step,
      certificate=path,
      batch_size=layout.batch_size,
    ),
    sweep=evaluation.sweep(
      decode,
      policy,
      plan.sweep_thresholds,
      compared,
      scoring=scoring,
      progress=speaking.say,
    ),
    certificate=_summary(certified, policy),
    timings=_timings(
      loaded, timed_batches, compared, policy, early_policy, plan.timing_repeats
    ),
    samples=samples,
    sample_selection=selection,
    consistency_metric=certified.context['metric'],
    budget=_budget_use(early_policy, early),
  )
  if collectives.is_main_process():
    _write(output_dir, result)
  collectives.wait_for_all('the end of the evaluation')
  return result


def _table(compared, prefix: str, scoring) -> tuple[records.PolicyRow, ...]:
  """Returns the rows of the decodes and of copying the input."""
  full = compared[0].decoded
  copies = [text.removeprefix(prefix) for text in full.inputs_text]
  copy_row = evaluation.baseline_row(
    'copy of the input', copies, full=full, scoring=scoring
  )
  return (*evaluation.compare(compared, scoring=scoring), copy_row)


def _summary(certified: Certificate, policy) -> records.CertificateSummary:
  """Returns what a report says of the certificate."""
  return records.CertificateSummary.of(
    certified,
    loss=certified.context['loss'],
    metric=certified.context['metric'],
    measure=type(policy.exit_rule.measure).__name__,
  )


def _budget_use(policy, early) -> records.BudgetUse | None:
  """Returns how far a decode used its layer budget, None without one."""
  if not isinstance(policy.exit_rule, exits.LayerBudget):
    return None
  return evaluation.budget_use(
    policy.exit_rule,
    early.exit_layers,
    early.confidences,
    num_layers=early.num_layers,
  )


def _load_certificate(path: str, split: str, task: str) -> Certificate:
  """Loads a certificate that may be put to the test on this split."""
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no certificate at {path}; run calm_jax.cli.calibrate first'
    )
  certified = Certificate.load(path)
  if split in ('train', 'validation', certified.context['split']):
    raise ValueError(
      f'split {split!r} was trained on, selected on or calibrated on; evaluate '
      "on 'test'"
    )
  if certified.context['task'] != task:
    raise ValueError(
      f'the certificate is of task {certified.context["task"]!r}, not of '
      f'{task!r}; calibrate on this one'
    )
  return certified


def _check_not_calibrated_on(certificate: str, full) -> None:
  """Refuses inputs of the loss table that lies beside the certificate."""
  path = os.path.join(os.path.dirname(certificate), 'loss_table.npz')
  if not os.path.exists(path):
    return
  shared = set(records.read_loss_table(path).example_ids) & set(
    full.example_ids
  )
  if shared:
    raise ValueError(
      f'{len(shared)} of {full.num_examples} inputs were calibrated on; give '
      'the task the same split arguments as calibration had'
    )


def _timings(loaded, timed_batches, compared, policy, early_policy, repeats):
  """Times full depth and early exit under both depth loops, on one process.

  On one of its devices: batches of this size are what a request is.
  """
  if not collectives.is_main_process():
    return ()
  full, early = compared[0].name, compared[1].name
  timings, bound = (), jobs.bind_to_loops(loaded)
  for batches in timed_batches:
    timings += evaluation.time_decode(
      bound,
      batches,
      {full: decoding.full_model(policy), early: early_policy},
      max_length=loaded.feature_lengths['targets'],
      baseline=full,
      eos_id=loaded.tokenizer.eos_id,
      bytes_of=costs.bytes_of(loaded.config, loaded.feature_lengths['inputs']),
      num_repeats=repeats,
      progress=speaking.say,
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
  speaking.say('\n' + reporting.render_text(result))
  speaking.say(f'report: {place("report.html")}')


if __name__ == '__main__':
  gin_runner.main('evaluate', takes_dry_run=True)

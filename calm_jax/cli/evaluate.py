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

import dataclasses
import functools
import os
from typing import Any

from calm_jax import (
  costs,
  data,
  decoding,
  evaluation,
  quantisation,
  records,
  reporting,
  runs,
)
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import gin_runner, jobs
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
  max_length: int | None = None,
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
    max_length: the most tokens of an output, EOS included; that of training if
      None. A certificate holds for one length.
    certificate: path; MODEL_DIR/calibration/certificate.json if None.
    output_dir: MODEL_DIR/evaluation if None.
    dry_run: say what devices would hold, and do nothing.
  """
  plan = evaluation.ComparisonPlan() if plan is None else plan
  layout = evaluation.BatchLayout() if layout is None else layout
  if dry_run:
    speaking.say(jobs.describe_decoding(model_dir, layout))
    return None
  policy.check_composition()
  if policy.verifies:
    raise ValueError(
      f'{type(policy.verification).__name__} checks every draft, so that '
      "outputs are the full model's: no certificate is put to the test. "
      'Decode with calm_jax.cli.generate; calm_jax.benchmarks.exactness says '
      'what it takes'
    )
  path = certificate or runs.certificate_path(model_dir)
  certified = _load_certificate(path, split, data.as_task(task).name)
  output_dir = output_dir or os.path.join(model_dir, 'evaluation')
  with jobs.open_output(output_dir, 'evaluate.gin'):
    loaded = jobs.load_run(model_dir, task, max_length)
    policy = decoding.at_output_length(
      policy, loaded.feature_lengths['targets']
    )
    weights = runs.weights_of(certified)
    layout = _with_weights(layout, weights)
    decode = jobs.dataset_decoder(loaded, layout, model_dir=model_dir)
    early_policy, _, differences = runs.use_certificate(
      certified,
      policy,
      dataclasses.replace(
        decode.context(policy),
        batch_shape=(layout.batch_size, loaded.feature_lengths['inputs']),
      ),
    )
    for line in differences.told:
      speaking.say(line)
    batches = list(
      data.eval_batches(
        task,
        layout.batch_size,
        feature_lengths=loaded.feature_lengths,
        split=split,
        max_examples=max_examples,
      )
    )
    batches = _without_calibrated(path, batches)
    timed = None
    if collectives.is_main_process():
      loops = jobs.timed_loops(layout)
      timed = evaluation.Timed(
        bind=functools.partial(
          jobs.bind_to_loops, loaded, weights, loops=loops
        ),
        bind_float=functools.partial(jobs.bind_to_loops, loaded, loops=loops)
        if weights is not None
        else None,
        bytes_of=costs.bytes_of(
          loaded.config, loaded.feature_lengths['inputs']
        ),
      )
    found = evaluation.run_evaluation(
      decode,
      batches,
      policy,
      certified,
      certified_policy=early_policy,
      plan=plan,
      pieces=loaded.tokenizer.pieces,
      prefix=loaded.prefix,
      timed=timed,
      progress=speaking.say,
      task=data.as_task(task).name,
      split=split,
      context=jobs.run_context(
        loaded.config,
        checkpoint_step=loaded.step,
        certificate=path,
        batch_size=layout.batch_size,
        decoding=decode.context(early_policy, {}).write(),
      ),
    )
    evaluation.write_predictions(
      output_dir, {'full': found.full, 'early': found.early}
    )
    if collectives.is_main_process():
      _write(output_dir, found.result)
    collectives.wait_for_all('the end of the evaluation')
    return found.result


def _with_weights(
  layout: evaluation.BatchLayout, weights: quantisation.Int8Weights | None
) -> evaluation.BatchLayout:
  """Returns the layout with the weights that a certificate was made with.

  Raises:
    ValueError: if it has others.
  """
  given = quantisation.as_weights(layout.weights)
  if given not in (None, weights):
    raise ValueError(
      f'BatchLayout.weights is {quantisation.describe_weights(given)}, but the '
      f'certificate asks for {quantisation.describe_weights(weights)}: leave '
      'it out, or calibrate with these weights'
    )
  return dataclasses.replace(layout, weights=weights)


def _load_certificate(path: str, split: str, task: str) -> Certificate:
  """Loads a certificate that may be put to the test on this split."""
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no certificate at {path}; run calm_jax.cli.calibrate first'
    )
  certified = Certificate.load(path)
  if split in ('train', 'validation', certified.context.get('split')):
    raise ValueError(
      f'split {split!r} was trained on, selected on or calibrated on; evaluate '
      "on 'test'"
    )
  made_on = certified.context.get('task')
  if made_on is None:
    speaking.say(f'{path} does not say which task it was made on')
  elif made_on != task:
    raise ValueError(
      f'the certificate is of task {made_on!r}, not of {task!r}; calibrate on '
      'this one'
    )
  return certified


def _without_calibrated(certificate: str, batches):
  """Returns batches without what was calibrated on, by the table beside.

  Inputs that differ only where they are cut are left out and counted; others
  should not be there.

  Raises:
    ValueError: if there are others.
  """
  beside = (
    os.path.join(os.path.dirname(certificate), name)
    # A tuning has two: of the rows that test, and of those that screen.
    for name in ('loss_table.npz', records.SCREENING_TABLE)
  )
  tables = map(records.read_loss_table, filter(os.path.exists, beside))
  calibrated = frozenset(one for table in tables for one in table.example_ids)
  if not calibrated:
    return batches
  left, shared, cut = evaluation.leave_out(batches, calibrated)
  total = sum(batch['num_valid'] for batch in batches)
  if shared > cut or not left:
    raise ValueError(
      f'{shared} of {total} inputs were calibrated on; give the task the same '
      'split arguments as calibration had'
    )
  if shared:
    length = batches[0]['encoder_input_tokens'].shape[1]
    speaking.say(
      f'{shared} of {total} inputs are, cut to {length} tokens, inputs that '
      'were calibrated on, and are left out'
    )
  return left


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

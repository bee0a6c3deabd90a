"""Certifies a threshold: a seqio evaluation Task that writes a certificate.

  python -m calm_jax.cli.calibrate --gin_file=runs/calibrate.gin \
    --gin_file=tasks/e2e_nlg.gin --gin_file=policies/softmax_margin.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Decodes the calibration split with the full model once, then at one threshold
after the other, from conservative to aggressive, until testing stops. The loss
table is kept and an interrupted run takes it up again.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  calibration,
  data,
  decoding,
  evaluation,
  pipeline,
  records,
)
from calm_jax.cli import gin_runner, jobs
from calm_jax.evaluation import text_metrics

DEFAULT_THRESHOLDS = tuple(round(0.95 - 0.05 * i, 2) for i in range(19))

_LOSSES = {
  'textual': evaluation.textual_loss,
  'risk': evaluation.risk_loss,
}


def run(
  *,
  model_dir: str,
  task: Any,
  policy: decoding.ComputePolicy,
  thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
  tolerance: float = 0.1,
  error_rate: float = 0.05,
  loss: str = 'textual',
  metric: str = 'rouge_l',
  p_value: Any = calibration.hoeffding_bentkus,
  procedure: Any = None,
  split: str = 'calibration',
  batch_size: int = 32,
  max_examples: int | None = None,
  output_dir: str | None = None,
) -> calibration.Certificate:
  """Calibrates the threshold of a policy (Learn then Test).

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task whose calibration split is used.
    policy: the policy; the value of its threshold does not matter.
    thresholds: the grid, strictly decreasing, fixed before any loss is seen.
    tolerance: what the expected loss may be at most (CALM's delta).
    error_rate: how often a certificate may be wrong (CALM's epsilon).
    loss: 'textual' (distance to the full model's output) or 'risk' (quality
      lost against the references).
    metric: the text metric behind the loss: one of text_metrics.METRICS.
    p_value: one of `calibration`'s p-values.
    procedure: `calibration.fixed_sequence()` if None.
    split: the split to calibrate on.
    batch_size: rows decoded together.
    max_examples: use only so many examples.
    output_dir: MODEL_DIR/calibration if None.
  """
  if loss not in _LOSSES:
    raise ValueError(f'loss is {loss!r}; use one of {sorted(_LOSSES)}')
  loss_of = _LOSSES[loss](text_metrics.get_metric(metric))
  thresholds = calibration.check_settings(thresholds)
  if split in ('train', 'validation'):
    raise ValueError(
      f'split {split!r} was trained or selected on; a certificate needs rows '
      "that chose nothing: use 'calibration'"
    )
  output_dir = output_dir or os.path.join(model_dir, 'calibration')
  os.makedirs(output_dir, exist_ok=True)
  gin_runner.write_operative_config(output_dir, 'calibrate.gin')
  loaded = jobs.load_run(model_dir, task)
  context = {
    'loss': loss,
    'metric': metric,
    'task': data.as_task(task).name,
    'split': split,
    'batch_size': batch_size,
    **_context(loaded, policy),
  }
  statistics = dict(
    tolerance=tolerance,
    error_rate=error_rate,
    p_value=p_value,
    procedure=procedure or calibration.fixed_sequence(),
  )
  found: list[calibration.Certificate] = []

  def predict(batches):
    _refuse_training_rows(model_dir, batches, loaded.prefix)
    table = functools.partial(
      evaluation.build_loss_table,
      settings=thresholds,
      loss=loss_of,
      loss_name=loss,
      next_column=functools.partial(calibration.next_column, **statistics),
      path=os.path.join(output_dir, 'loss_table.npz'),
      fingerprint=context,
      progress=jobs.say,
    )
    return _decode_grid(loaded, policy, batches, table)

  def certify(losses: np.ndarray) -> dict[str, float]:
    certificate = calibration.calibrate(
      losses,
      thresholds,
      context={**context, 'versions': jobs.versions()},
      **statistics,
    )
    found.append(certificate)
    return {
      'certified': float(certificate.certified),
      'threshold': certificate.threshold,
      'num_examples': float(certificate.num_examples),
    }

  data.run_calibration_task(
    task,
    predict=predict,
    metric=certify,
    batch_size=batch_size,
    feature_lengths=loaded.feature_lengths,
    log_dir=output_dir,
    split=split,
    max_examples=max_examples,
  )
  path = os.path.join(output_dir, 'certificate.json')
  found[-1].save(path)
  jobs.say(f'{found[-1].describe()}\nwritten to {path}')
  return found[-1]


def _refuse_training_rows(model_dir: str, batches, prefix: str) -> None:
  """Refuses inputs that the run was trained or selected on."""
  path = os.path.join(model_dir, records.TRAINING_ROWS_NAME)
  if not os.path.exists(path):
    jobs.say(f'no {path}: cannot check that these rows chose nothing')
    return
  rows = records.read_training_rows(path)
  data.refuse_training_rows(batches, rows, prefix=prefix)


def _context(loaded: pipeline.LoadedRun, policy) -> dict[str, Any]:
  """Returns what the losses depend on besides task and threshold."""
  return {
    **pipeline.certificate_context(
      policy,
      params=loaded.params,
      tokenizer=loaded.tokenizer,
      sampler=decoding.Greedy(),
    ),
    'max_length': loaded.feature_lengths['targets'],
    'dtype': loaded.config.dtype,
    'backend': jax.default_backend(),
  }


def _decode_grid(loaded, policy, batches, build_table):
  """Decodes with the full model and at the thresholds that testing asks for.

  Returns:
    The full model's tokens [N, T] and the losses [N, J].
  """
  decode = jobs.make_decode(loaded)
  jobs.say(f'full model on {sum(b["num_valid"] for b in batches)} inputs')
  full = decode(batches, policy=decoding.full_model(policy))
  table = build_table(
    lambda threshold: decode(
      batches, policy=decoding.with_threshold(policy, threshold)
    ),
    full=full,
  )
  return full.tokens, table.losses


if __name__ == '__main__':
  gin_runner.main('calibrate')

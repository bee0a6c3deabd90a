"""Certifies a threshold at which inputs leave the encoder and are classified.

  python -m calm_jax.cli.calibrate_encoder \
    --gin_file=runs/calibrate_encoder.gin --gin_file=tasks/banking77.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/banking77

The run has heads of its encoder layers (train_encoder_heads). The loss is
whether the class is another one than the last layer says (textual), or what is
lost of the accuracy (--gin.LOSS=signed); --gin.PROMISES bounds both. A row that
leaves the encoder changes nothing for the layers before, so one pass over all
layers of the calibration split tells the losses of all thresholds, and nothing
is decoded twice. The certificate, the table of losses and the configuration go
to MODEL_DIR/encoder_calibration.
"""

import dataclasses
import os
from typing import Any

from calm_jax import (
  calibration,
  data,
  evaluation,
  exits,
  interfaces,
  records,
)
from calm_jax.cli import gin_runner, jobs
from calm_jax.processes import speaking


def run(
  *,
  model_dir: str,
  task: Any,
  exit_rule: interfaces.ExitRule,
  plan: evaluation.CalibrationPlan,
  heads: str = 'encoder_heads',
  split: str = 'calibration',
  batch_size: int = 32,
  max_examples: int | None = None,
  full_grid: bool = True,
  output_dir: str | None = None,
) -> calibration.Certificate:
  """Calibrates the threshold of an exit rule of encoder layers.

  Args:
    model_dir: a run directory with heads.
    task: the Task whose calibration split is used.
    exit_rule: the rule; the value of its threshold does not matter.
    plan: thresholds, loss, tolerance and tests; its metric says when two
      classes are the same, by their names.
    heads: the folder of the heads in `model_dir`.
    split: the split to calibrate on.
    batch_size: rows of a pass.
    max_examples: use only so many examples.
    full_grid: keep the losses of the thresholds beyond the one where testing
      stops as well; they cost nothing.
    output_dir: MODEL_DIR/encoder_calibration if None.
  """
  if split in ('train', 'validation'):
    raise ValueError(
      f'split {split!r} was trained or selected on; a certificate needs rows '
      "that chose nothing: use 'calibration'"
    )
  output_dir = output_dir or os.path.join(model_dir, 'encoder_calibration')
  with jobs.open_output(output_dir, 'calibrate_encoder.gin'):
    loaded = jobs.load_run(model_dir, task)
    if plan.settings is None:
      settings = exits.usual_settings(
        exit_rule, 'encoder_exit.rule', loaded.config.num_encoder_layers
      )
      plan = dataclasses.replace(plan, settings=settings)
    batches = list(
      data.eval_batches(
        task,
        batch_size,
        feature_lengths=loaded.feature_lengths,
        split=split,
        max_examples=max_examples,
      )
    )
    jobs.refuse_training_rows(model_dir, batches, loaded.prefix)
    classifier = jobs.classifier_of(loaded, model_dir, heads)
    found = evaluation.run_calibration(
      classifier,
      batches,
      classifier.policy(exit_rule),
      plan,
      context={
        'task': data.as_task(task).name,
        'split': split,
        'checkpoint_step': loaded.step,
        'batch_shape': [batch_size, loaded.feature_lengths['inputs']],
      },
      full_grid=full_grid,
      table_path=os.path.join(output_dir, 'loss_table.npz'),
      uses_in=os.path.join(model_dir, records.ROW_USES_NAME),
      progress=speaking.say,
    )
    path = os.path.join(output_dir, 'certificate.json')
    found.certificate.save(path)
  speaking.say(f'{found.certificate.describe()}\nwritten to {path}')
  return found.certificate


if __name__ == '__main__':
  gin_runner.main('calibrate_encoder', one_process=True)

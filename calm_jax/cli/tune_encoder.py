"""Chooses the fastest exit rule of an encoder's classifier that is certified.

  python -m calm_jax.cli.tune_encoder --gin_file=runs/tune_encoder.gin \
    --gin_file=tasks/banking77.gin --gin_file=spaces/encoder_heads.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/banking77 \
    --gin.TOLERANCE=0.02 --gin.BATCH_SIZE=32

The run has heads of its encoder layers (train_encoder_heads). As in tune, half
of the calibration split screens all settings of all rules, by their losses and
by the wall clock of this device at this batch size, from ids to classes; what
no other beats is tested by the other half, safest first, and the fastest of the
certified is chosen. Losses are those of calibrate_encoder, of one pass over all
layers. MODEL_DIR/encoder_tuned has the certificate, tuned.json and a page,
tuned.html; what was chosen is

  calm_jax.runs.policy_of(certificate, MODEL_DIR).encoder_exit

whose `rule` and `loop` encoding.classify takes.
"""

import os
from collections.abc import Sequence
from typing import Any

from calm_jax import data, evaluation, records
from calm_jax.cli import gin_runner, jobs, tune
from calm_jax.processes import speaking

# Inputs that all layers are run for together.
_ROWS_OF_A_PASS = 32


def run(
  *,
  model_dir: str,
  task: Any,
  space: Sequence[evaluation.Candidates | evaluation.LeftOut],
  plan: evaluation.TuningPlan,
  heads: str = 'encoder_heads',
  split: str = 'calibration',
  max_examples: int | None = None,
  output_dir: str | None = None,
) -> records.Tuning:
  """Screens, tests and chooses.

  Args:
    model_dir: a run directory with heads.
    task: the Task whose calibration split is used; its targets name classes.
    space: policies that let inputs leave the encoder, with the settings to try;
      the heads are put into them, and for batches the loop that gathers rows;
      what is left out for want of a trained part is said.
    plan: what is promised, and what it may take; its metric says when two
      classes are the same, by their names.
    heads: the folder of the heads in `model_dir`.
    split: the split to screen and test on.
    max_examples: use only so many examples.
    output_dir: MODEL_DIR/encoder_tuned if None.
  """
  space = evaluation.trained_only(space, speaking.say)
  if split in ('train', 'validation'):
    raise ValueError(
      f'split {split!r} was trained or selected on; a certificate needs rows '
      "that chose nothing: use 'calibration'"
    )
  output_dir = output_dir or os.path.join(model_dir, 'encoder_tuned')
  with jobs.open_output(output_dir, 'tune_encoder.gin'):
    loaded = jobs.load_run(model_dir, task)
    classifier = jobs.classifier_of(loaded, model_dir, heads)
    space = classifier.space(space, batch_size=plan.batch_size)
    batches = tune.batches_of(
      task, loaded, _ROWS_OF_A_PASS, split, max_examples
    )
    jobs.refuse_training_rows(model_dir, batches, loaded.prefix)
    found = evaluation.run_tuning(
      classifier,
      batches,
      space,
      plan,
      run_context=jobs.run_context(
        loaded.config,
        checkpoint_step=loaded.step,
        num_classes=len(classifier.class_texts),
      ),
      context={
        'task': data.as_task(task).name,
        'split': split,
        'checkpoint_step': loaded.step,
        'batch_shape': [_ROWS_OF_A_PASS, loaded.feature_lengths['inputs']],
      },
      screened_path=os.path.join(output_dir, 'screened.json'),
      uses_in=os.path.join(model_dir, records.ROW_USES_NAME),
      progress=speaking.say,
    )
    return tune.write(output_dir, found)


if __name__ == '__main__':
  gin_runner.main('tune_encoder', one_process=True)

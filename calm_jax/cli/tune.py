"""Chooses the fastest of many settings that surely keeps what is promised.

  python -m calm_jax.cli.tune --gin_file=runs/tune.gin \
    --gin_file=tasks/e2e_nlg.gin --gin_file=spaces/margins.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg \
    --gin.PROMISES="(('textual', 0.05), ('signed', 0.02))" \
    --gin.BATCH_SIZE=8 --gin.MINUTES=30

Half of the calibration split screens the candidates of all policies of a space,
by their losses and by the wall clock of this device at this batch size. What no
other beats is tested by the other half, safest first, with all of the error
rate, and the fastest of the certified is chosen (Pareto testing, arXiv
2210.07913). Lossless drafts and the full model need no test, and compete.

Decoded rows are kept in MODEL_DIR/decodes, what was screened in the output
folder: an interrupted tuning decodes nothing twice and goes on with the same
tests. MODEL_DIR/tuned has the certificate, tuned.json and a page, tuned.html.
What was chosen decodes by

  calm_jax.load('runs/e2e_nlg', certificate='tuned')

and in generate, evaluate and export by --gin_file=policies/tuned.gin, given
last. The last two are about certificates, which lossless drafts and the full
model have none of; they say so.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

from calm_jax import (
  data,
  decoding,
  evaluation,
  quantisation,
  records,
  reporting,
  runs,
)
from calm_jax.cli import gin_runner, jobs
from calm_jax.processes import speaking


def run(
  *,
  model_dir: str,
  task: Any,
  space: Sequence[evaluation.Candidates | evaluation.LeftOut],
  plan: evaluation.TuningPlan,
  layout: evaluation.BatchLayout | None = None,
  split: str = 'calibration',
  max_examples: int | None = None,
  max_length: int | None = None,
  output_dir: str | None = None,
  dry_run: bool = False,
) -> records.Tuning | None:
  """Screens, tests and chooses.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task whose calibration split is used.
    space: the policies with the settings to try; what is left out for want of
      a trained part is said.
    plan: what is promised, and what it may take.
    layout: how rows are decoded together; the defaults if None. What losses are
      does not depend on it, and the clock has a batch size of its own.
    split: the split to screen and test on.
    max_examples: use only so many examples.
    max_length: the most tokens of an output, EOS included; that of training if
      None. What is chosen is chosen for one length.
    output_dir: MODEL_DIR/tuned if None.
    dry_run: say what devices would hold, and do nothing.
  """
  space = evaluation.trained_only(space, speaking.say)
  layout = evaluation.BatchLayout() if layout is None else layout
  if quantisation.as_weights(layout.weights) is not None:
    raise ValueError(
      'BatchLayout.weights are for calibrate; here each policy of the space '
      'has its own (evaluation.Candidates.weights)'
    )
  if split in ('train', 'validation'):
    raise ValueError(
      f'split {split!r} was trained or selected on; a certificate needs rows '
      "that chose nothing: use 'calibration'"
    )
  if dry_run:
    speaking.say(jobs.describe_decoding(model_dir, layout))
    return None
  output_dir = output_dir or os.path.join(model_dir, records.TUNED_FOLDER)
  with jobs.open_output(output_dir, 'tune.gin'):
    loaded = jobs.load_run(model_dir, task, max_length)
    batches = batches_of(task, loaded, layout.batch_size, split, max_examples)
    jobs.refuse_training_rows(model_dir, batches, loaded.prefix)
    found = evaluation.run_tuning(
      functools.cache(
        functools.partial(_decoder, loaded, layout, model_dir=model_dir)
      ),
      batches,
      space,
      plan,
      run_context=jobs.run_context(
        loaded.config,
        checkpoint_step=loaded.step,
        batch_size=layout.batch_size,
      ),
      bind=functools.partial(
        jobs.bind_to_loops,
        loaded,
        loops=plan.loops(decoding.default_depth_loop()),
      ),
      context={
        'task': data.as_task(task).name,
        'split': split,
        'checkpoint_step': loaded.step,
        'batch_shape': [layout.batch_size, loaded.feature_lengths['inputs']],
      },
      screened_path=os.path.join(output_dir, 'screened.json'),
      uses_in=os.path.join(model_dir, records.ROW_USES_NAME),
      progress=speaking.say,
    )
    return write(output_dir, found)


def batches_of(
  task: Any,
  loaded: runs.LoadedRun,
  batch_size: int,
  split: str,
  max_examples: int | None,
) -> list[dict[str, Any]]:
  """Returns the rows of a split that screen and test.

  Raises:
    ValueError: for a mixture.
  """
  found = data.as_task(task)
  if hasattr(found, 'tasks'):
    raise ValueError(
      f'{found.name} is a mixture, and a certificate speaks about one task; '
      f'tune for one of {[part.name for part in found.tasks]}'
    )
  return list(
    data.eval_batches(
      task,
      batch_size,
      feature_lengths=loaded.feature_lengths,
      split=split,
      max_examples=max_examples,
    )
  )


def _decoder(
  loaded: runs.LoadedRun,
  layout: evaluation.BatchLayout,
  weights: quantisation.Int8Weights | None,
  *,
  model_dir: str,
) -> evaluation.DatasetDecoder:
  """Returns what decodes rows with these weights, and keeps them."""
  return jobs.dataset_decoder(
    loaded, dataclasses.replace(layout, weights=weights), model_dir=model_dir
  )


def write(output_dir: str, found: evaluation.TunedRun) -> records.Tuning:
  """Writes all of a tuning; what says that it is whole comes last."""

  def place(name):
    return os.path.join(output_dir, name)

  tuning, certificate = found.tuning, found.certificate
  records.write_loss_table(place('loss_table.npz'), found.tested)
  if certificate is not None:
    certificate.save(place(records.TUNED_CERTIFICATE))
    tuning = dataclasses.replace(tuning, certificate=records.TUNED_CERTIFICATE)
    speaking.say(certificate.describe())
  elif os.path.exists(place(records.TUNED_CERTIFICATE)):
    # Of an earlier tuning, whose choice is no longer that of the folder.
    os.remove(place(records.TUNED_CERTIFICATE))
  reporting.save_figure(reporting.tuning_figure(tuning), place('front.png'))
  reporting.write_tuning_page(place('tuned.html'), tuning)
  records.write_json(place(records.TUNED_NAME), tuning)
  speaking.say('\n' + reporting.render_tuning_text(tuning))
  speaking.say(f'{tuning.sentence}\nwritten to {place(records.TUNED_NAME)}')
  return tuning


if __name__ == '__main__':
  gin_runner.main('tune', takes_dry_run=True, one_process=True)

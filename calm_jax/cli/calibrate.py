"""Certifies a threshold: a seqio evaluation Task that writes a certificate.

  python -m calm_jax.cli.calibrate --gin_file=runs/calibrate.gin \
    --gin_file=tasks/e2e_nlg.gin --gin_file=policies/softmax_margin.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Decodes the calibration split with the full model once, then at one threshold
after the other, from conservative to aggressive, until testing stops
(--gin.FULL_GRID=True goes on to the end, for studies; the certificate is the
same). Decoded rows are kept in MODEL_DIR/decodes, so that an interrupted run,
or one with another loss or tolerance, decodes nothing twice. Of several
processes each decodes its share.

Several losses are bounded together by
--gin.PROMISES="(('textual', 0.05), ('signed', 0.02))": the distance to the full
model is at most 0.05, and the quality lost on the mean at most 0.02.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from calm_jax import (
  calibration,
  checks,
  costs,
  data,
  decoding,
  evaluation,
  interfaces,
  quantisation,
  records,
  runs,
)
from calm_jax.cli import gin_runner, jobs
from calm_jax.processes import collectives, speaking


def run(
  *,
  model_dir: str,
  task: Any,
  policy: decoding.ComputePolicy,
  plan: evaluation.CalibrationPlan,
  layout: evaluation.BatchLayout | None = None,
  split: str = 'calibration',
  max_examples: int | None = None,
  max_length: int | None = None,
  full_grid: bool = False,
  timed_inputs: int = 0,
  output_dir: str | None = None,
  dry_run: bool = False,
) -> calibration.Certificate | None:
  """Calibrates the threshold of a policy (Learn then Test).

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task whose calibration split is used.
    policy: the policy; the value of its threshold does not matter.
    plan: thresholds, loss, tolerance and tests.
    layout: how rows are decoded together; the defaults if None.
    split: the split to calibrate on.
    max_examples: use only so many examples.
    max_length: the most tokens of an output, EOS included; that of training if
      None. A certificate holds for one length.
    full_grid: decode the thresholds beyond the one where testing stops as well.
    timed_inputs: measure the wall clock of every threshold of the grid on so
      many inputs, one by one, and keep it beside the loss table for
      `calm_jax.cli.validate`.
    output_dir: MODEL_DIR/calibration if None.
    dry_run: say what devices would hold, and do nothing.
  """
  checks.check_whole(timed_inputs, 'timed_inputs', low=0)
  layout = evaluation.BatchLayout() if layout is None else layout
  if split in ('train', 'validation'):
    raise ValueError(
      f'split {split!r} was trained or selected on; a certificate needs rows '
      "that chose nothing: use 'calibration'"
    )
  if dry_run:
    speaking.say(jobs.describe_decoding(model_dir, layout))
    return None
  output_dir = output_dir or os.path.join(model_dir, 'calibration')
  with jobs.open_output(output_dir, 'calibrate.gin'):
    loaded = jobs.load_run(model_dir, task, max_length)
    policy = decoding.at_output_length(
      policy, loaded.feature_lengths['targets']
    )
    decode = jobs.dataset_decoder(loaded, layout, model_dir=model_dir)
    done: dict[str, Any] = {}

    def predict(batches) -> tuple[np.ndarray, np.ndarray]:
      # Before anything is decoded.
      jobs.refuse_training_rows(model_dir, batches, loaded.prefix)
      done['batches'] = batches
      done['calibration'] = found = evaluation.run_calibration(
        decode,
        batches,
        policy,
        plan,
        context={
          'task': data.as_task(task).name,
          'split': split,
          'checkpoint_step': loaded.step,
          'batch_shape': [layout.batch_size, loaded.feature_lengths['inputs']],
        },
        full_grid=full_grid,
        table_path=_place(output_dir, 'loss_table.npz'),
        uses_in=os.path.join(model_dir, records.ROW_USES_NAME),
        progress=speaking.say,
      )
      # A row for each example of the Task, those that are read alike as well.
      return found.of_rows()

    data.run_calibration_task(
      task,
      predict=predict,
      metric=lambda losses: _logged(done['calibration'].certificate),
      batch_size=layout.batch_size,
      feature_lengths=loaded.feature_lengths,
      log_dir=output_dir if collectives.is_main_process() else None,
      split=split,
      max_examples=max_examples,
    )
    found = done['calibration']
    _save(output_dir, found)
    if timed_inputs and collectives.is_main_process():
      _time_settings(
        output_dir,
        loaded,
        done['batches'],
        policy,
        found.table,
        timed_inputs,
        decode.bound.weights,
        jobs.timed_loops(layout),
      )
    collectives.wait_for_all('the end of the calibration')
    return found.certificate


def _logged(certificate: calibration.Certificate) -> dict[str, float]:
  """Returns what seqio's Evaluator logs."""
  return {
    'certified': float(certificate.certified),
    'threshold': certificate.threshold,
    'num_examples': float(certificate.num_examples),
  }


def _place(folder: str, name: str) -> str | None:
  """Returns where a file goes; None on processes that write none."""
  if not collectives.is_main_process():
    return None
  return os.path.join(folder, name)


def _save(output_dir: str, found: evaluation.Calibration) -> None:
  """Writes certificate and cost, and says what they are."""
  path = _place(output_dir, 'certificate.json')
  if path is not None:
    found.certificate.save(path)
    records.write_json(_place(output_dir, 'cost.json'), found.cost)
  speaking.say(
    f'{found.certificate.describe()}\n{found.cost.describe()}\nwritten to '
    f'{path}'
  )


def _time_settings(
  output_dir: str,
  loaded: runs.LoadedRun,
  batches: list[Any],
  policy: decoding.ComputePolicy,
  table: records.LossTable,
  num_inputs: int,
  weights: quantisation.Int8Weights | None,
  loops: Mapping[str, interfaces.DepthLoop],
) -> None:
  """Measures how fast every threshold decodes, and writes it down."""
  fingerprint = {
    name: value
    for name, value in table.fingerprint.items()
    if name != 'loss_range'
  }
  speeds = evaluation.time_settings(
    jobs.bind_to_loops(loaded, weights, loops=loops),
    batches,
    policy=policy,
    settings=table.settings,
    num_inputs=num_inputs,
    max_length=loaded.feature_lengths['targets'],
    eos_id=loaded.tokenizer.eos_id,
    suppressed_tokens=loaded.suppressed_tokens,
    fingerprint=fingerprint,
    context=jobs.run_context(loaded.config),
    full_bound=None
    if weights is None
    else jobs.bind_to_loops(loaded, loops=loops),
    bytes_of=costs.bytes_of(loaded.config, loaded.feature_lengths['inputs']),
    progress=speaking.say,
  )
  path = os.path.join(output_dir, records.SETTING_SPEEDS_NAME)
  records.write_json(path, speeds)
  speaking.say(f'speed of {len(table.settings)} thresholds: {path}')


if __name__ == '__main__':
  gin_runner.main('calibrate', takes_dry_run=True)

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
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import (
  calibration,
  checks,
  data,
  decoding,
  evaluation,
  records,
  runs,
)
from calm_jax.cli import gin_runner, jobs, setting_speeds
from calm_jax.cli.calibration_cost import CostMeter
from calm_jax.cli.threshold_grid import ThresholdGrid
from calm_jax.processes import collectives, speaking

DEFAULT_THRESHOLDS = tuple(i / 20 for i in range(19, -1, -1))


def run(
  *,
  model_dir: str,
  task: Any,
  policy: decoding.ComputePolicy,
  thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
  tolerance: float = 0.1,
  error_rate: float = 0.05,
  loss: str = 'textual',
  metric: str | Callable = 'rouge_l',
  p_value: Any = None,
  procedure: Any = None,
  split: str = 'calibration',
  batch_size: int = 32,
  max_examples: int | None = None,
  full_grid: bool = False,
  timed_inputs: int = 0,
  model_parallel: int = 1,
  output_dir: str | None = None,
  dry_run: bool = False,
) -> calibration.Certificate | None:
  """Calibrates the threshold of a policy (Learn then Test).

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task whose calibration split is used.
    policy: the policy; the value of its threshold does not matter.
    thresholds: the grid, strictly decreasing, fixed before any loss is seen.
    tolerance: what the expected loss may be at most (CALM's delta).
    error_rate: how often a certificate may be wrong (CALM's epsilon).
    loss: 'textual' (distance to the full model's output), 'risk' (quality lost
      against the references, clipped at 0 per input) or 'signed' (the same
      without clipping, in [-1, 1]).
    metric: the text metric behind the loss: a name in text_metrics.METRICS, a
      function (prediction, references) -> [0, 1], or its 'module:name'.
    p_value: one of `calibration`'s p-values; hoeffding_bentkus if None, betting
      for 'signed', whose range the others make little of.
    procedure: `calibration.fixed_sequence()` if None.
    split: the split to calibrate on.
    batch_size: rows decoded together.
    max_examples: use only so many examples.
    full_grid: decode the thresholds beyond the one where testing stops as well.
    timed_inputs: measure the wall clock of every threshold of the grid on so
      many inputs, one by one, and keep it beside the loss table for
      `calm_jax.cli.validate`.
    model_parallel: devices of a process that share every row.
    output_dir: MODEL_DIR/calibration if None.
    dry_run: say what devices would hold, and do nothing.
  """
  checks.check_whole(timed_inputs, 'timed_inputs', low=0)
  thresholds = calibration.check_settings(thresholds)
  loss = evaluation.get_loss(loss, metric)
  if split in ('train', 'validation'):
    raise ValueError(
      f'split {split!r} was trained or selected on; a certificate needs rows '
      "that chose nothing: use 'calibration'"
    )
  if dry_run:
    speaking.say(
      jobs.describe_decoding(
        model_dir, batch_size=batch_size, model_parallel=model_parallel
      )
    )
    return None
  output_dir = output_dir or os.path.join(model_dir, 'calibration')
  jobs.open_output(output_dir, 'calibrate.gin')
  loaded = jobs.load_run(model_dir, task)
  job = _Calibration(
    loaded=loaded,
    model_dir=model_dir,
    output_dir=output_dir,
    policy=policy,
    thresholds=thresholds,
    loss=loss,
    statistics=dict(
      tolerance=tolerance,
      error_rate=error_rate,
      p_value=p_value
      or calibration.P_VALUES[calibration.default_p_value(loss.loss_range)],
      procedure=procedure or calibration.fixed_sequence(),
      loss_range=loss.loss_range,
    ),
    context={
      'loss': loss.name,
      'metric': loss.metric_name,
      'task': data.as_task(task).name,
      'split': split,
      **_context(loaded, policy, batch_size),
    },
    full_grid=full_grid,
    model_parallel=model_parallel,
  )
  data.run_calibration_task(
    task,
    predict=job.predict,
    metric=job.certify,
    batch_size=batch_size,
    feature_lengths=loaded.feature_lengths,
    log_dir=output_dir if collectives.is_main_process() else None,
    split=split,
    max_examples=max_examples,
  )
  certificate = job.save()
  if timed_inputs and collectives.is_main_process():
    job.time_settings(timed_inputs)
  collectives.wait_for_all('the end of the calibration')
  return certificate


class _Calibration:
  """One calibration: what seqio's Evaluator calls, and what is left of it."""

  def __init__(
    self,
    *,
    loaded: runs.LoadedRun,
    model_dir: str,
    output_dir: str,
    policy: decoding.ComputePolicy,
    thresholds: Sequence[float],
    loss: evaluation.ConsistencyLoss,
    statistics: dict[str, Any],
    context: dict[str, Any],
    full_grid: bool,
    model_parallel: int,
  ):
    self._model_parallel = model_parallel
    self._loaded = loaded
    self._model_dir = model_dir
    self._output_dir = output_dir
    self._policy = policy
    self._thresholds = thresholds
    self._loss = loss
    self._statistics = statistics
    self._context = context
    self._full_grid = full_grid
    self._meter = CostMeter()
    self._certificate: calibration.Certificate | None = None
    self._batches: list[Any] = []

  def predict(self, batches) -> tuple[np.ndarray, np.ndarray]:
    """Decodes what testing asks for.

    Returns:
      The full model's tokens [N, T] and the losses [N, J], NaN where testing
      stopped.
    """
    self._batches = batches
    # Before anything is decoded.
    _refuse_training_rows(self._model_dir, batches, self._loaded.prefix)
    self._loss.check_references(
      [texts for b in batches for texts in b['references'][: b['num_valid']]]
    )
    keep_in = os.path.join(self._model_dir, jobs.DECODES)
    decode = jobs.make_decode(
      self._loaded, keep_in=keep_in, model_parallel=self._model_parallel
    )
    grid = ThresholdGrid(
      functools.partial(decode, batches), self._policy, self._meter
    )
    speaking.say(f'full model on {sum(b["num_valid"] for b in batches)} inputs')
    full = grid.full()
    self._context['examples'] = _digest(full.example_ids)
    table = evaluation.build_loss_table(
      grid.at,
      self._thresholds,
      loss=self._meter.timed('scoring', self._loss),
      loss_name=self._loss.name,
      full=full,
      next_column=self._meter.timed(
        'statistics',
        functools.partial(calibration.next_column, **self._statistics),
      ),
      full_grid=self._full_grid,
      path=self._place('loss_table.npz'),
      fingerprint={**self._context, 'loss_range': self._loss.loss_range},
      progress=speaking.say,
    )
    return full.tokens, table.losses

  def certify(self, losses: np.ndarray) -> dict[str, float]:
    """Makes the certificate of losses [N, J]; returns what seqio logs."""
    certificate = self._meter.timed('statistics', calibration.calibrate)(
      losses,
      self._thresholds,
      context={**self._context, 'versions': jobs.versions()},
      **self._statistics,
    )
    self._certificate = certificate
    return {
      'certified': float(certificate.certified),
      'threshold': certificate.threshold,
      'num_examples': float(certificate.num_examples),
    }

  def save(self) -> calibration.Certificate:
    """Writes certificate and cost, and says what they are."""
    path = self._place('certificate.json')
    cost = self._meter.result()
    if path is not None:
      self._certificate.save(path)
      records.write_json(self._place('cost.json'), cost)
    speaking.say(
      f'{self._certificate.describe()}\n{cost.describe()}\nwritten to {path}'
    )
    return self._certificate

  def _place(self, name: str) -> str | None:
    """Returns where a file goes; None on processes that write none."""
    if not collectives.is_main_process():
      return None
    return os.path.join(self._output_dir, name)

  def time_settings(self, num_inputs: int) -> None:
    """Measures how fast every threshold decodes, and writes it down."""
    path = os.path.join(self._output_dir, records.SETTING_SPEEDS_NAME)
    speeds = setting_speeds.measure(
      self._loaded,
      self._batches,
      policy=self._policy,
      thresholds=self._thresholds,
      num_inputs=num_inputs,
      fingerprint=self._context,
    )
    records.write_json(path, speeds)
    speaking.say(f'speed of {len(self._thresholds)} thresholds: {path}')


def _digest(example_ids: Sequence[str]) -> str:
  """Returns a hash of which inputs there are, in whatever order."""
  text = ' '.join(sorted(example_ids))
  return 'sha256:' + hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_training_rows(model_dir: str, batches, prefix: str) -> None:
  """Refuses inputs that the run was trained or selected on."""
  path = os.path.join(model_dir, records.TRAINING_ROWS_NAME)
  if not os.path.exists(path):
    speaking.say(f'no {path}: cannot check that these rows chose nothing')
    return
  rows = records.read_training_rows(path)
  data.refuse_training_rows(batches, rows, prefix=prefix)


def _context(loaded: runs.LoadedRun, policy, batch_size: int) -> dict[str, Any]:
  """Returns what the losses depend on besides task, loss and threshold."""
  return {
    **runs.certificate_context(
      policy,
      params=loaded.params,
      tokenizer=loaded.tokenizer,
      sampler=decoding.Greedy(),
    ),
    'num_layers': loaded.config.num_decoder_layers,
    'checkpoint_step': loaded.step,
    'max_length': loaded.feature_lengths['targets'],
    'batch_shape': [batch_size, loaded.feature_lengths['inputs']],
    'depth_loop': type(decoding.default_depth_loop()).__name__,
    'dtype': loaded.config.dtype,
    'backend': jax.default_backend(),
  }


if __name__ == '__main__':
  gin_runner.main('calibrate', takes_dry_run=True)

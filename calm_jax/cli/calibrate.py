"""Certifies a threshold: a seqio evaluation Task that writes a certificate.

  python -m calm_jax.cli.calibrate --gin_file=runs/calibrate.gin \
    --gin_file=tasks/e2e_nlg.gin --gin_file=policies/softmax_margin.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Decodes the calibration split with the full model once, then at one threshold
after the other, from conservative to aggressive, until testing stops
(--gin.FULL_GRID=True goes on to the end, for studies; the certificate is the
same). Decoded rows are kept in MODEL_DIR/decodes, so that an interrupted run,
or one with another loss or tolerance, decodes nothing twice.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
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
from calm_jax.cli.calibration_cost import CostMeter

DEFAULT_THRESHOLDS = tuple(i / 20 for i in range(19, -1, -1))


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What is tested, and how; fixed before any loss is seen.

  Attributes:
    tolerance: what the expected loss may be at most (CALM's delta).
    error_rate: how often a certificate may be wrong (CALM's epsilon).
    p_value: one of `calibration`'s p-values.
    procedure: one of `calibration`'s procedures.
    loss_range: the smallest and the largest value a loss can have.
  """

  tolerance: float
  error_rate: float
  p_value: Any
  procedure: Any
  loss_range: tuple[float, float]

  def arguments(self) -> dict[str, Any]:
    """Returns them as `calibration.calibrate` takes them."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
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
  metric: str | Callable = 'rouge_l',
  p_value: Any = None,
  procedure: Any = None,
  split: str = 'calibration',
  batch_size: int = 32,
  max_examples: int | None = None,
  full_grid: bool = False,
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
    output_dir: MODEL_DIR/calibration if None.
  """
  thresholds = calibration.check_settings(thresholds)
  loss = evaluation.get_loss(loss, metric)
  if p_value is None:
    signed = loss.loss_range[0] < 0
    p_value = calibration.betting if signed else calibration.hoeffding_bentkus
  statistics = Statistics(
    tolerance=tolerance,
    error_rate=error_rate,
    p_value=p_value,
    procedure=procedure or calibration.fixed_sequence(),
    loss_range=loss.loss_range,
  )
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
    'loss': loss.name,
    'metric': loss.metric_name,
    'task': data.as_task(task).name,
    'split': split,
    **_context(loaded, policy, batch_size),
  }
  decode = jobs.make_decode(
    loaded, keep_in=os.path.join(model_dir, jobs.DECODES)
  )
  meter = CostMeter()
  found: list[calibration.Certificate] = []

  def predict(batches):
    _refuse_training_rows(model_dir, batches, loaded.prefix)
    # Before anything is decoded.
    loss.check_references(
      [texts for b in batches for texts in b['references'][: b['num_valid']]]
    )
    grid = _Grid(functools.partial(decode, batches), policy, meter)
    jobs.say(f'full model on {sum(b["num_valid"] for b in batches)} inputs')
    full = grid.full()
    table = evaluation.build_loss_table(
      grid.at,
      thresholds,
      loss=meter.timed('scoring', loss),
      loss_name=loss.name,
      full=full,
      next_column=meter.timed(
        'statistics',
        functools.partial(calibration.next_column, **statistics.arguments()),
      ),
      full_grid=full_grid,
      path=os.path.join(output_dir, 'loss_table.npz'),
      fingerprint={**context, 'loss_range': statistics.loss_range},
      progress=jobs.say,
    )
    return full.tokens, table.losses

  def certify(losses: np.ndarray) -> dict[str, float]:
    certificate = meter.timed('statistics', calibration.calibrate)(
      losses,
      thresholds,
      context={**context, 'versions': jobs.versions()},
      **statistics.arguments(),
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
  cost = meter.result()
  records.write_json(os.path.join(output_dir, 'cost.json'), cost)
  jobs.say(f'{found[-1].describe()}\n{cost.describe()}\nwritten to {path}')
  return found[-1]


def _refuse_training_rows(model_dir: str, batches, prefix: str) -> None:
  """Refuses inputs that the run was trained or selected on."""
  path = os.path.join(model_dir, records.TRAINING_ROWS_NAME)
  if not os.path.exists(path):
    jobs.say(f'no {path}: cannot check that these rows chose nothing')
    return
  rows = records.read_training_rows(path)
  data.refuse_training_rows(batches, rows, prefix=prefix)


def _context(
  loaded: pipeline.LoadedRun, policy, batch_size: int
) -> dict[str, Any]:
  """Returns what the losses depend on besides task, loss and threshold."""
  return {
    **pipeline.certificate_context(
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


class _Grid:
  """Decodes thresholds, each from what the one before it has decoded."""

  def __init__(self, decode, policy, meter: CostMeter):
    self._decode = decode
    self._policy = policy
    self._meter = meter
    self._latest: tuple[float, evaluation.DecodedDataset] | None = None

  def full(self) -> evaluation.DecodedDataset:
    """Decodes with the full model."""
    decoded = self._decode(policy=decoding.full_model(self._policy))
    self._meter.note_full(decoded)
    return decoded

  def at(self, threshold: float) -> evaluation.DecodedDataset:
    """Decodes at one threshold."""
    earlier = None
    if self._latest is not None and threshold <= self._latest[0]:
      earlier = self._latest[1]
    policy = decoding.with_threshold(self._policy, threshold)
    decoded = self._decode(policy=policy, earlier=earlier)
    self._latest = (threshold, decoded)
    self._meter.note(threshold, decoded)
    return decoded


if __name__ == '__main__':
  gin_runner.main('calibrate')

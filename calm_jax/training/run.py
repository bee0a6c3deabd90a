"""One start of a run: taking steps, logging, evaluating, saving, stopping.

`Stage` says what is trained and `Plan` when to do what; `Run` does it. The host
runs at most two steps ahead of the device and looks at no number between log
lines, and checkpoints are written in the background, so that nothing here makes
the device wait long.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax.array_types import Params
from calm_jax.checkpoints import SaveError
from calm_jax.processes import collectives
from calm_jax.training import progress
from calm_jax.training.evaluators import Evaluator, evaluate_all
from calm_jax.training.interruption import Interrupted, StopSignals
from calm_jax.training.parameter_table import parameter_table
from calm_jax.training.placement import Placement
from calm_jax.training.plan import Plan, TrainResult
from calm_jax.training.remembered import Remembered
from calm_jax.training.run_directory import RunDirectory
from calm_jax.training.stage import Batch, Stage
from calm_jax.training.state import TrainState


class Run:
  """One start of a run."""

  def __init__(
    self,
    stage: Stage,
    plan: Plan,
    *,
    evaluators: Mapping[str, Evaluator],
    directory: RunDirectory,
    placement: Placement,
  ):
    """Remembers what to do, where and with what."""
    self.stage = stage
    self.plan = plan
    self.evaluators = evaluators
    self.directory = directory
    self.placement = placement
    self.state: TrainState
    # Host copy of state.step: reading that one would wait for the device.
    self.step = 0
    self.saved_step: int | None = None
    self.remembered = Remembered()
    self.report: progress.ProgressReport

  @property
  def resumed(self) -> bool:
    """Whether an earlier start has left a checkpoint."""
    return self.directory.latest is not None

  def start(self, context: Mapping[str, Any]) -> None:
    """Takes a fresh state, or what the last checkpoint says instead."""
    stage, resumed = self.stage, self.resumed
    make = self.placement.shapes if resumed else self.placement.create
    self.state, self.remembered = self.directory.resume(
      make(stage.init, stage.params)
    )
    self.step = int(self.state.step)
    self.saved_step = self.step if resumed else None
    self.report = progress.ProgressReport(
      self.plan.num_steps, seconds=self.remembered.seconds
    )
    self.directory.write_parameters(
      parameter_table(self.state.params, self.placement)
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
    device = jax.devices()[0]
    devices = self.placement.description()
    self.directory.append(
      {
        'kind': 'start',
        'step': self.step,
        'config': stage.config,
        'num_parameters': size,
        'device': f'{device.platform} {device.device_kind}',
        **devices,
        'plan': self.plan,
        'context': context,
        'jax': jax.__version__,
      }
    )
    shown = f'{size / 1e6:.1f} M' if size >= 1e5 else f'{size:,}'
    _say(
      f'{self.directory.path}: {shown} parameters, {stage.title}, on '
      f'{devices["num_devices"]} x {device.platform}; '
      f'{"resumes" if resumed else "starts"} at step {self.step} of '
      f'{self.plan.num_steps}'
    )

  # The loop.

  def loop(self, batches: Iterator[Batch], signals: StopSignals) -> TrainResult:
    """Runs steps until there is a reason to stop."""
    try:
      try:
        reason = self._take_steps(batches, signals)
        self._log()
        if reason != 'signal' and self.remembered.evaluated_step != self.step:
          self._evaluate(signals)
      except Interrupted:
        pass
      self._save()
      self.directory.wait()
    except progress.NonFiniteLoss as error:
      self.directory.wait()
      raise FloatingPointError(self._describe(error)) from None
    except SaveError:
      raise
    except Exception:
      # An evaluator or the data failed: what was learned is kept.
      self._save_if_possible()
      raise
    if signals.received is not None:
      _say(
        f'interrupted at step {self.step}; saved. The same command goes on '
        'from there.'
      )
      signals.exit_as_asked()
    _say(f'finished at step {self.step} ({reason})')
    return TrainResult(
      params=self.state.params,
      step=self.step,
      stopped_because=reason,
      best_step=self.remembered.best_step,
      best_value=self.remembered.best_value,
      seconds=self.report.seconds,
    )

  def _take_steps(self, batches, signals) -> str:
    """Takes steps; returns why it stopped ('signal' among the reasons)."""
    plan, first, under_way = self.plan, True, []
    train_step = self.placement.step(self.stage.step, self.state)
    constants = self.placement.constants(self.stage.constants)
    if self._evaluation_is_due():
      # An earlier start was interrupted at this one, and saved without it.
      self._evaluate(signals)
    while (reason := self._reason_to_stop()) is None:
      if self._agreed(signals.received is not None):
        signals.learn()
        return 'signal'
      self.directory.poll()
      batch = next(batches, None)
      if batch is None:
        if self.step == 0:
          raise ValueError('there is no batch to train on')
        return 'end of data'
      batch = self.placement.batch(self.stage.check_batch(batch))
      started = time.monotonic()
      self.state, metrics = train_step(self.state, batch, constants)
      if first:
        # The call returns when it is compiled.
        self.report.pause(time.monotonic() - started)
        first = False
      self.step += 1
      self.report.add(self.step, metrics)
      # Dispatch runs ahead of the device; by two steps is enough to keep it
      # busy, and lets a signal be answered soon.
      under_way.append(metrics.loss)
      if len(under_way) > 2:
        under_way.pop(0).block_until_ready()
      if self.step % plan.log_every == 0:
        self._log()
      if self._evaluation_is_due():
        self._evaluate(signals)
      if self.step % plan.checkpoint_every == 0:
        self._save()
    return reason

  def _evaluation_is_due(self) -> bool:
    at_evaluation = self.step > 0 and self.step % self.plan.eval_every == 0
    return at_evaluation and self.remembered.evaluated_step != self.step

  def _reason_to_stop(self) -> str | None:
    plan = self.plan
    if self.step >= plan.num_steps:
      return 'num_steps'
    stale = self.remembered.stale_evaluations
    if plan.patience is not None and stale >= plan.patience:
      return 'patience'
    if plan.max_minutes is not None and self._agreed(
      self.report.seconds >= plan.max_minutes * 60
    ):
      return 'max_minutes'
    return None

  def _agreed(self, flag: bool) -> bool:
    """Returns whether `flag` holds in some process of the run.

    Clocks and signals differ between processes, which must stop at the same
    step; several of them ask each other at log lines only, where they wait
    anyway.
    """
    if jax.process_count() == 1:
      return flag
    return self.step % self.plan.log_every == 0 and collectives.any_process(
      flag
    )

  # Log, evaluation, checkpoint.

  def _log(self) -> None:
    """Writes what the steps since the last log line did; checks for NaN."""
    if not self.report.has_steps:
      return
    row = self.report.flush(self._learning_rate(self.step))
    self.directory.append({'kind': 'train', **row})
    minutes = self.plan.max_minutes
    _say(self.report.line(row, limit=minutes and minutes * 60))

  def _evaluate(self, signals: StopSignals) -> None:
    """Runs the evaluators and keeps the parameters if they are the best."""
    if not self.evaluators:
      return
    self._log()
    started = time.monotonic()
    with signals.at_once():
      values = evaluate_all(self.evaluators, self.state.params, self.step)
    note = self._judge(values)
    self.directory.append(
      {
        'kind': 'evaluation',
        'step': self.step,
        **values,
        'evaluation_seconds': time.monotonic() - started,
        'seconds': self.report.seconds,
      }
    )
    _say(progress.evaluation_line(self.step, values, note))
    self.report.pause(time.monotonic() - started)

  def _judge(self, values: Mapping[str, float]) -> str:
    """Updates the best evaluation; returns a remark for the printed line."""
    metric = self.plan.best_metric
    if metric not in values:
      raise ValueError(
        f'best_metric {metric!r} is not among the metrics that evaluators '
        f'return: {sorted(values)}'
      )
    # A checkpoint of this step, if there is one, does not know it yet.
    self.saved_step = None
    value = float(values[metric])
    best, best_step = self.remembered.best_value, self.remembered.best_step
    better = self.plan.is_better(value, best)
    if better:
      self._check_finite()
      self.directory.save_best(self.state, self.step, {metric: value})
    self.remembered = self.remembered.judged(value, self.step, self.plan)
    if better:
      return '  (best so far)'
    shown = 'none' if best is None else f'{best:.4g}'
    return f'  (best {shown} at step {best_step})'

  def _save(self) -> None:
    """Saves a checkpoint of this step unless there is one."""
    if self.saved_step == self.step:
      return
    self._log()
    started = time.monotonic()
    self._check_finite()
    self.remembered = dataclasses.replace(
      self.remembered, seconds=self.report.seconds
    )
    self.directory.save(self.state, self.step, self.remembered, wait=False)
    self.saved_step = self.step
    self.report.pause(time.monotonic() - started)

  def _save_if_possible(self) -> None:
    if self.step == 0 or jax.process_count() > 1:
      # Nothing was learned; or all of them would have to save together, and
      # the others know of no error.
      return
    try:
      self._save()
      self.directory.wait()
    except progress.NonFiniteLoss:
      pass
    except (SaveError, OSError) as error:
      _say(f'after an error, saving failed as well: {error}')

  def _check_finite(self) -> None:
    if not bool(_all_finite(self.state.params)):
      raise progress.NonFiniteLoss(self.step, float('nan'))

  def _learning_rate(self, step: int) -> float:
    return float(self.stage.optimizer.schedule(jnp.asarray(step - 1)))

  def _describe(self, error: progress.NonFiniteLoss) -> str:
    rate = self._learning_rate(error.step)
    kept = 'no checkpoint had been saved yet'
    if self.directory.latest is not None:
      kept = f'the last good checkpoint is {self.directory.latest}'
    return (
      f'loss, gradient or parameters are not finite at step {error.step} (loss '
      f'{error.loss}, learning rate {rate:.3g}). Nothing of it was saved; '
      f'{kept}. Try a lower learning rate, a longer warm-up, '
      'clip_global_norm=1.0, or dtype float32 if it is bfloat16.'
    )


@jax.jit
def _all_finite(params: Params) -> jax.Array:
  return jnp.stack(
    [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
  ).all()


def _say(line: str) -> None:
  if collectives.is_main_process():
    print(line, flush=True)

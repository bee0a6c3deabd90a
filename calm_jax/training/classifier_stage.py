"""The second stage of CALM: training the early-exit classifier.

The model is frozen, and a kernel [D] and a bias are trained to say where its
layers agree with its last one. What the loop saves, logs and resumes from is a
run directory of its own inside the model's, and says which parameters the
classifier was trained for.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model
from calm_jax.array_types import Params
from calm_jax.checkpoints import classifiers, directories
from calm_jax.exits import Classifier
from calm_jax.processes import collectives
from calm_jax.training import classifier_losses, classifier_step, progress
from calm_jax.training import step as step_lib
from calm_jax.training.interruption import StopSignals
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.run_directory import Remembered, RunDirectory
from calm_jax.training.step import TrainState

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ClassifierResult:
  """How the training of a classifier ended.

  Attributes:
    classifier: kernel [D] and bias [], float32.
    loss: the name of the loss.
    step: steps taken.
    stopped_because: 'num_steps' or 'end of data'.
    seconds: wall-clock time, earlier starts included.
    directory: where the classifier was saved.
  """

  classifier: Classifier
  loss: str
  step: int
  stopped_because: str
  seconds: float
  directory: str


def train_classifier(
  config: model.T5Config,
  params: Params,
  batches: Callable[[int], Iterable[Batch]],
  *,
  optimizer: Optimizer,
  num_steps: int,
  model_dir: str | os.PathLike,
  loss: str = 'independent',
  name: str = classifiers.DEFAULT_NAME,
  log_every: int = 50,
  checkpoint_every: int = 500,
  context: Mapping[str, Any] | None = None,
) -> ClassifierResult:
  """Trains a classifier for a frozen model (arXiv 2207.07061).

  It starts from zeros, so that there is nothing to seed. Running the same call
  again goes on from the last checkpoint.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    batches: from the number of batches already consumed to the batches from
      there on, dicts of NumPy arrays with T5X's keys, one per step.
    optimizer: from `optimizer.adamw` or `optimizer.adafactor`.
    num_steps: steps of the whole run.
    model_dir: the model's run directory.
    loss: 'independent', 'balanced' or 'geometric'; see `classifier_losses`.
    name: of the folder in `model_dir` that the classifier goes to: its
      checkpoints and train_log.jsonl.
    log_every: steps between log lines.
    checkpoint_every: steps between checkpoints; also one at the end.
    context: JSON values that are saved and must be the same on a restart.

  Raises:
    ValueError: for bad arguments or batches, or a directory of another run.
    FloatingPointError: when the loss becomes NaN or infinite.
    SaveError: when a checkpoint could not be written.
    KeyboardInterrupt, SystemExit: after a signal, with a checkpoint saved.
  """
  numbers = dict(
    num_steps=num_steps, log_every=log_every, checkpoint_every=checkpoint_every
  )
  _check_arguments(config, batches, numbers)
  _check_name(name)
  loss_fn = classifier_losses.get_classifier_loss(loss)
  context = {
    **(context or {}),
    'classifier_loss': loss,
    **classifiers.backbone_context(params),
  }
  run = _Run(
    RunDirectory(
      os.path.join(os.fspath(model_dir), name),
      config,
      context=context,
      max_to_keep=2,
    ),
    optimizer,
    loss=loss,
    num_steps=num_steps,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
  )
  run.start(config, context)
  step = functools.partial(
    classifier_step.make_classifier_step(config, optimizer, loss=loss_fn),
    params=jax.tree.map(jnp.asarray, params),
  )
  with StopSignals() as signals:
    return run.loop(
      step,
      (step_lib.check_batch(batch, config) for batch in batches(run.step)),
      signals,
    )


class _Run:
  """One start of the training of a classifier."""

  def __init__(
    self,
    directory: RunDirectory,
    optimizer: Optimizer,
    *,
    loss: str,
    num_steps: int,
    log_every: int,
    checkpoint_every: int,
  ):
    self.directory = directory
    self.loss = loss
    self.optimizer = optimizer
    self.num_steps = num_steps
    self.log_every = log_every
    self.checkpoint_every = checkpoint_every
    self.state: TrainState
    self.step = 0
    self.saved_step: int | None = None
    self.report: progress.ProgressReport

  def start(self, config: model.T5Config, context: Mapping[str, Any]) -> None:
    """Takes a fresh classifier, or the one of the last checkpoint."""
    fresh = classifier_step.init_classifier_state(config, self.optimizer)
    resumed = self.directory.latest is not None
    self.state, remembered = self.directory.resume(fresh)
    self.step = int(self.state.step)
    self.saved_step = self.step if resumed else None
    self.report = progress.ProgressReport(
      self.num_steps, seconds=remembered.seconds
    )
    device = jax.devices()[0]
    self.directory.append(
      {
        'kind': 'start',
        'step': self.step,
        'config': config,
        'device': f'{device.platform} {device.device_kind}',
        'context': context,
        'jax': jax.__version__,
      }
    )
    _say(
      f'{self.directory.path}: a classifier of {config.embed_dim + 1} '
      f'parameters for {config.num_decoder_layers - 1} exits, '
      f'{self.loss} loss, on {device.platform}; '
      f'{"resumes" if resumed else "starts"} at step {self.step} of '
      f'{self.num_steps}'
    )

  def loop(self, step, batches, signals: StopSignals) -> ClassifierResult:
    """Runs steps until there is a reason to stop."""
    try:
      reason = self._take_steps(step, batches, signals)
      self._save()
    except progress.NonFiniteLoss as error:
      raise FloatingPointError(self._describe(error)) from None
    if reason == 'signal':
      _say(
        f'interrupted at step {self.step}; saved. The same command goes on '
        'from there.'
      )
      signals.exit_as_asked()
    _say(f'finished at step {self.step} ({reason})')
    return ClassifierResult(
      classifier=classifier_step.classifier_of(self.state.params),
      loss=self.loss,
      step=self.step,
      stopped_because=reason,
      seconds=self.report.seconds,
      directory=self.directory.path,
    )

  def _take_steps(self, step, batches, signals: StopSignals) -> str:
    """Takes steps; returns why it stopped."""
    first, under_way = True, []
    while self.step < self.num_steps:
      if signals.received is not None:
        return 'signal'
      batch = next(batches, None)
      if batch is None:
        if self.step == 0:
          raise ValueError('there is no batch to train the classifier on')
        return 'end of data'
      started = time.monotonic()
      self.state, metrics = step(self.state, batch)
      if first:
        # The call returns when it is compiled.
        self.report.pause(time.monotonic() - started)
        first = False
      self.step += 1
      self.report.add(self.step, metrics)
      # No further ahead of the device than it takes to keep it busy.
      under_way.append(metrics.loss)
      if len(under_way) > 2:
        under_way.pop(0).block_until_ready()
      if self.step % self.log_every == 0:
        self._log()
      if self.step % self.checkpoint_every == 0:
        self._save()
    return 'num_steps'

  def _log(self) -> None:
    """Writes what the steps since the last log line did; checks for NaN."""
    if not self.report.has_steps:
      return
    row = self.report.flush(self._learning_rate(self.step))
    self.directory.append({'kind': 'train', **row})
    _say(self.report.line(row))

  def _save(self) -> None:
    """Saves a checkpoint of this step unless there is one."""
    self._log()
    if self.saved_step == self.step:
      return
    started = time.monotonic()
    weights = jax.device_get(jax.tree.leaves(self.state.params))
    if not all(np.isfinite(leaf).all() for leaf in weights):
      raise progress.NonFiniteLoss(self.step, float('nan'))
    self.directory.save(
      self.state, self.step, Remembered(seconds=self.report.seconds)
    )
    self.saved_step = self.step
    self.report.pause(time.monotonic() - started)

  def _learning_rate(self, step: int) -> float:
    return float(self.optimizer.schedule(jnp.asarray(step - 1)))

  def _describe(self, error: progress.NonFiniteLoss) -> str:
    return (
      f'loss or weights of the classifier are not finite at step {error.step} '
      f'(loss {error.loss}, learning rate {self._learning_rate(error.step):.3g}'
      f'). Nothing of it was saved; the last good checkpoint is '
      f'{self.directory.latest}. Try a lower learning rate.'
    )


def _check_arguments(config, batches, numbers: Mapping[str, Any]) -> None:
  if config.num_decoder_layers < 2:
    raise ValueError(
      'a classifier needs a model of at least 2 decoder layers, got '
      f'num_decoder_layers = {config.num_decoder_layers}: there is no exit '
      'before the last layer'
    )
  if not callable(batches):
    raise ValueError(
      'batches must be a function from the number of batches consumed to the '
      f'batches from there on, got {type(batches).__name__}'
    )
  for name, value in numbers.items():
    checks.check_whole(value, name, low=1)


def _check_name(name: str) -> None:
  """Raises a ValueError for a folder that is the model's or elsewhere."""
  reserved = ('', '.', '..', directories.BEST)
  if (
    name in reserved
    or os.path.basename(name) != name
    or name.startswith('checkpoint_')
  ):
    raise ValueError(
      f'name must be that of a folder of its own in model_dir, got {name!r}'
    )


def _say(line: str) -> None:
  if collectives.is_main_process():
    print(line, flush=True)

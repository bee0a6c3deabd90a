"""Trains an early-exit T5 on a seqio Task, from gin files.

  python -m calm_jax.cli.train --gin_file=runs/train.gin \
    --gin_file=models/text_256.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Restarting the same command goes on from the last checkpoint. The run directory
holds the configuration (train.gin), the log (train_log.jsonl, tensorboard/ and
losses.png), parameters.txt, the vocabulary, the hashes of the rows trained and
selected on (training_rows.npz) and the checkpoints. With a file of policies,
and `--gin.DECODE_EVERY=1000`, the validation split is decoded on the way.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from calm_jax import (
  checkpoints,
  data,
  model,
  records,
  reporting,
  runs,
  sharding,
  training,
)
from calm_jax.cli import gin_runner, jobs, seen_rows
from calm_jax.cli.decoding_evaluator import DecodingPlan
from calm_jax.cli.tensorboard_logger import TensorBoardLogger
from calm_jax.processes import collectives, speaking
from calm_jax.tokenizer import keep_vocabulary, vocabulary_context
from calm_jax.training import memory_plan
from calm_jax.training.run_directory import LOG_NAME


def run(
  *,
  model_dir: str,
  task: Any,
  config: model.T5Config,
  optimizer: training.Optimizer,
  num_steps: int,
  feature_lengths: Mapping[str, int],
  batch_size: int = 64,
  length_buckets: Sequence[Sequence[int]] = ((16, 16), (32, 32), (64, 64)),
  pack: bool = False,
  use_cached: bool = False,
  layer_weights: Callable[[int], Sequence[float]] = training.linear_weights,
  z_loss: float = 1e-4,
  label_smoothing: float = 0.0,
  loss_normalizer: float | None = None,
  num_microbatches: int = 1,
  frozen: Sequence[str] = (),
  initial_model_dir: str | None = None,
  partitioning: str = 'data_parallel',
  model_parallel: int = 1,
  eval_every: int = 500,
  eval_examples: int | None = 1000,
  decode: DecodingPlan | None = None,
  best_metric: str = 'validation_loss',
  best_mode: str = 'min',
  checkpoint_every: int = 500,
  max_to_keep: int = 2,
  log_every: int = 20,
  patience: int | None = None,
  max_minutes: float | None = None,
  seed: int = 0,
  dry_run: bool = False,
) -> training.TrainResult | None:
  """Trains with the weighted multi-exit loss (arXiv 2207.07061, Eq. 6).

  Args:
    model_dir: the run directory.
    task: a definition with `register()` (JsonlTask, TfdsTask, EmbeddedCorpus,
      MixtureTask), a seqio Task or the name of one.
    config: the model; its vocab_size must cover the Task's vocabulary.
    optimizer: from `training.adafactor` or `training.adamw`.
    num_steps: optimizer steps in all, counted from the first start.
    feature_lengths: longest inputs and targets in tokens, EOS included.
    batch_size: examples per step (packed rows with `pack`).
    length_buckets: (inputs, targets) lengths that batches are padded to.
    pack: put several examples into a row of `feature_lengths`.
    use_cached: read the Task's cache; see `data.caching`.
    layer_weights: number of decoder layers -> one weight per exit.
    z_loss: see `training.LossSettings`.
    label_smoothing: see `training.LossSettings`.
    loss_normalizer: see `training.LossSettings`.
    num_microbatches: parts of a batch that are run one after the other.
    frozen: patterns of parameter paths to leave as they are; see
      `training.freeze`.
    initial_model_dir: a run whose (best) parameters to start from.
    partitioning: how parameters lie on several devices; see `training.train`.
    model_parallel: devices that share each row.
    eval_every: steps between teacher-forced evaluations on 'validation'.
    eval_examples: validation examples used for it; None for all.
    decode: what to decode on the way, and how often; nothing if None.
    best_metric: the metric that picks the best checkpoint.
    best_mode: 'min' or 'max'.
    checkpoint_every: steps between checkpoints.
    max_to_keep: checkpoints kept besides the best one.
    log_every: steps between progress lines.
    patience: stop after so many evaluations without improvement.
    max_minutes: stop (and save) after so much wall-clock time.
    seed: of parameters, data order and dropout.
    dry_run: print the mesh, where parameters lie and the memory per device.
  """
  seqio_task = data.as_task(task)
  tokenizer = data.tokenizer_of(
    seqio_task.output_features['targets'].vocabulary
  )
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'the vocabulary of {seqio_task.name} has {tokenizer.vocab_size} pieces, '
      f'the model only {config.vocab_size} rows: set vocab_size to at least '
      'the former (a multiple of 128 suits accelerators)'
    )
  context = {
    'task': seqio_task.name,
    **vocabulary_context(tokenizer),
    'prefix': data.prefix_of(task),
    'feature_lengths': dict(feature_lengths),
    'batch_size': batch_size,
    'seed': seed,
    'length_buckets': [list(bucket) for bucket in length_buckets],
    # What is not the default changes the data or the parameters as well.
    **{
      name: value
      for name, value in (
        ('pack', pack),
        ('use_cached', use_cached),
        ('frozen', list(frozen)),
        ('initial_model_dir', initial_model_dir),
        ('prefixes', _prefixes(seqio_task)),
      )
      if value
    },
  }
  if decode is not None:
    decode.check(eval_every=eval_every, best_metric=best_metric)
  _check_resumable(model_dir, config, context)
  if frozen:
    optimizer = training.freeze(optimizer, frozen)
  layout = dict(mesh=_mesh(model_parallel), partitioning=partitioning)
  if dry_run:
    speaking.say(
      memory_plan.describe_training(
        config, optimizer, batch_size=batch_size, **layout
      )
    )
    return None
  jobs.open_output(model_dir, 'train.gin')
  if collectives.is_main_process():
    keep_vocabulary(tokenizer, model_dir)
  seen_rows.write(
    model_dir,
    task,
    initial_model_dir,
    selected=seen_rows.selected_on(eval_examples, decode),
  )
  batches = functools.partial(
    data.train_batches,
    seqio_task,
    batch_size,
    feature_lengths=feature_lengths,
    length_buckets=length_buckets,
    pack=pack,
    use_cached=use_cached,
    seed=seed,
    num_shards=jax.process_count(),
    shard_id=jax.process_index(),
  )
  validation = functools.partial(
    data.eval_batches,
    seqio_task,
    batch_size,
    feature_lengths=feature_lengths,
    split='validation',
  )
  evaluators = {
    'validation': training.teacher_forced_evaluator(
      config, functools.partial(validation, max_examples=eval_examples)
    )
  }
  if decode is not None and decode.every is not None:
    evaluators['decoding'] = decode.evaluator(
      config,
      validation,
      tokenizer=tokenizer,
      max_length=feature_lengths['targets'],
      last_step=num_steps,
    )
  result = training.train(
    config,
    lambda skip: batches(skip=skip),
    optimizer=optimizer,
    num_steps=num_steps,
    model_dir=model_dir,
    layer_weights=layer_weights,
    z_loss=z_loss,
    label_smoothing=label_smoothing,
    loss_normalizer=loss_normalizer,
    num_microbatches=num_microbatches,
    initial_params=_initial_params(
      initial_model_dir, config, tokenizer, model_dir
    ),
    **layout,
    evaluators=evaluators,
    best_metric=best_metric,
    best_mode=best_mode,
    eval_every=eval_every,
    checkpoint_every=checkpoint_every,
    max_to_keep=max_to_keep,
    log_every=log_every,
    patience=patience,
    max_minutes=max_minutes,
    seed=seed,
    context=context,
    loggers=(TensorBoardLogger(os.path.join(model_dir, 'tensorboard')),),
  )
  _draw_losses(model_dir)
  return result


def _mesh(model_parallel: int) -> jax.sharding.Mesh | None:
  """Returns a mesh of all devices; None for a single one."""
  if jax.device_count() == 1 and model_parallel == 1:
    return None
  return sharding.make_mesh(model=model_parallel)


def _prefixes(seqio_task) -> dict[str, str]:
  """Returns the prefixes of a mixture's parts, whose own is none."""
  parts = data.subtasks_of(seqio_task)
  if len(parts) == 1:
    return {}
  return {part.name: data.prefix_of(part) for part in parts}


def _initial_params(model_dir: str | None, config, tokenizer, resumed: str):
  """Returns the parameters of another run, unless ours has begun already."""
  if model_dir is None or checkpoints.latest_step(resumed) is not None:
    return None
  loaded = runs.load_run(model_dir)
  if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
    raise ValueError(
      f'{model_dir} was trained with another vocabulary than this task reads; '
      f'give the task {loaded.tokenizer.name}'
    )
  changed = _changed_shape(loaded.config, config)
  if changed:
    raise ValueError(
      f'{model_dir} holds another model: {changed}; give the same model file'
    )
  speaking.say(f'starting from step {loaded.step} of {model_dir}')
  return loaded.params


def _changed_shape(theirs: model.T5Config, ours: model.T5Config) -> str:
  """Says which fields that shape parameters differ."""
  fields = (field.name for field in dataclasses.fields(ours))
  return ', '.join(
    f'{name} {getattr(theirs, name)!r} there, {getattr(ours, name)!r} here'
    for name in fields
    if name not in ('dropout_rate', 'dtype')
    and getattr(theirs, name) != getattr(ours, name)
  )


def _draw_losses(model_dir: str) -> None:
  """Draws the log, where there is matplotlib."""
  if not collectives.is_main_process():
    return
  if importlib.util.find_spec('matplotlib') is None:
    return
  log = os.path.join(model_dir, LOG_NAME)
  path = os.path.join(model_dir, 'losses.png')
  reporting.save_figure(reporting.loss_figure(records.read_jsonl(log)), path)
  speaking.say(f'curves: {path}')


def _check_resumable(model_dir: str, config, context) -> None:
  """Refuses a directory of another run before anything in it is touched."""
  latest = checkpoints.latest_step(model_dir)
  if latest is not None:
    path = checkpoints.checkpoint_path(model_dir, latest)
    metadata = checkpoints.read_metadata(path)
    checkpoints.check_same_run(path, metadata, config, context)


if __name__ == '__main__':
  gin_runner.main('train', takes_dry_run=True)

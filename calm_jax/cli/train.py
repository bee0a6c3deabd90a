"""Trains an early-exit T5 on a seqio Task, from gin files.

  python -m calm_jax.cli.train --gin_file=runs/train.gin \
    --gin_file=models/text_256.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

Restarting the same command goes on from the last checkpoint. The run directory
holds the configuration, the log (train_log.jsonl), the vocabulary and the
checkpoints.
"""

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax import checkpoints, data, model, training
from calm_jax.cli import gin_runner
from calm_jax.tokenizer import SentencePieceTokenizer

VOCABULARY_NAME = 'vocabulary.model'


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
  layer_weights: Callable[[int], Sequence[float]] = training.linear_weights,
  z_loss: float = 1e-4,
  label_smoothing: float = 0.0,
  eval_every: int = 500,
  eval_examples: int | None = 1000,
  checkpoint_every: int = 500,
  max_to_keep: int = 2,
  log_every: int = 20,
  patience: int | None = None,
  max_minutes: float | None = None,
  seed: int = 0,
) -> training.TrainResult:
  """Trains with the weighted multi-exit loss (arXiv 2207.07061, Eq. 6).

  Args:
    model_dir: the run directory.
    task: a definition with `register()` (JsonlTask, EmbeddedCorpus), a seqio
      Task or the name of one.
    config: the model; its vocab_size must cover the Task's vocabulary.
    optimizer: from `training.adafactor` or `training.adamw`.
    num_steps: optimizer steps in all, counted from the first start.
    feature_lengths: longest inputs and targets in tokens, EOS included.
    batch_size: examples per step.
    length_buckets: (inputs, targets) lengths that batches are padded to.
    layer_weights: number of decoder layers -> one weight per exit.
    z_loss: see `training.LossSettings`.
    label_smoothing: see `training.LossSettings`.
    eval_every: steps between teacher-forced evaluations on 'validation'.
    eval_examples: validation examples used for it; None for all.
    checkpoint_every: steps between checkpoints.
    max_to_keep: checkpoints kept besides the best one.
    log_every: steps between progress lines.
    patience: stop after so many evaluations without improvement.
    max_minutes: stop (and save) after so much wall-clock time.
    seed: of parameters, data order and dropout.
  """
  seqio_task = data.as_task(task)
  vocabulary = seqio_task.output_features['targets'].vocabulary
  vocabulary_path = vocabulary.sentencepiece_model_file
  tokenizer = SentencePieceTokenizer(vocabulary_path, vocabulary.extra_ids)
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'the vocabulary of {seqio_task.name} has {tokenizer.vocab_size} pieces, '
      f'the model only {config.vocab_size} rows: set vocab_size to at least '
      'the former (a multiple of 128 suits accelerators)'
    )
  context = {
    'task': seqio_task.name,
    'vocabulary_file': VOCABULARY_NAME,
    'vocabulary_fingerprint': tokenizer.fingerprint,
    'extra_ids': vocabulary.extra_ids,
    'prefix': data.prefix_of(task),
    'feature_lengths': dict(feature_lengths),
    'batch_size': batch_size,
    'seed': seed,
  }
  _check_resumable(model_dir, config, context)
  os.makedirs(model_dir, exist_ok=True)
  gin_runner.write_operative_config(model_dir, 'train.gin')
  _keep_vocabulary(model_dir, vocabulary_path)
  batches = functools.partial(
    data.train_batches,
    seqio_task,
    batch_size,
    feature_lengths=feature_lengths,
    length_buckets=length_buckets,
    seed=seed,
  )
  validation = functools.partial(
    data.eval_batches,
    seqio_task,
    batch_size,
    feature_lengths=feature_lengths,
    split='validation',
    max_examples=eval_examples,
  )
  return training.train(
    config,
    lambda skip: batches(skip=skip),
    optimizer=optimizer,
    num_steps=num_steps,
    model_dir=model_dir,
    layer_weights=layer_weights,
    z_loss=z_loss,
    label_smoothing=label_smoothing,
    evaluators={
      'validation': training.teacher_forced_evaluator(config, validation)
    },
    eval_every=eval_every,
    checkpoint_every=checkpoint_every,
    max_to_keep=max_to_keep,
    log_every=log_every,
    patience=patience,
    max_minutes=max_minutes,
    seed=seed,
    context=context,
  )


def _check_resumable(model_dir: str, config, context) -> None:
  """Refuses a directory of another run before anything in it is touched."""
  latest = checkpoints.latest_step(model_dir)
  if latest is not None:
    path = checkpoints.checkpoint_path(model_dir, latest)
    metadata = checkpoints.read_metadata(path)
    checkpoints.check_same_run(path, metadata, config, context)


def _keep_vocabulary(model_dir: str, path: str) -> None:
  """Copies the vocabulary beside the checkpoints, whole or not at all."""
  kept = os.path.join(model_dir, VOCABULARY_NAME)
  if os.path.abspath(kept) != os.path.abspath(path):
    shutil.copyfile(path, f'{kept}.tmp')
    os.replace(f'{kept}.tmp', kept)


if __name__ == '__main__':
  gin_runner.main('train')

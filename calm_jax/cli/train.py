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
from typing import Any

import jax

from calm_jax import (
  checkpoints,
  model,
  records,
  reporting,
  runs,
  sharding,
  training,
)
from calm_jax import data as datasets
from calm_jax.cli import gin_runner, jobs, seen_rows
from calm_jax.cli.decoding_evaluator import DecodingPlan
from calm_jax.cli.tensorboard_logger import TensorBoardLogger
from calm_jax.processes import collectives, speaking
from calm_jax.tokenizer import Tokenizer, vocabulary_context
from calm_jax.training import memory_plan
from calm_jax.training.run_directory import LOG_NAME, check_same_run


def run(
  *,
  model_dir: str,
  task: Any,
  config: model.T5Config,
  optimizer: training.Optimizer,
  plan: training.Plan,
  data: datasets.DataPlan,
  objective: training.Objective | training.BatchObjective | None = None,
  decode: DecodingPlan | None = None,
  initial_model_dir: str | None = None,
  partitioning: str = 'data_parallel',
  model_parallel: int = 1,
  seed: int = 0,
  dry_run: bool = False,
) -> training.TrainResult | None:
  """Trains with a loss at every exit (arXiv 2207.07061, Eq. 6), or another.

  Args:
    model_dir: the run directory.
    task: a definition with `register()` (JsonlTask, TfdsTask, EmbeddedCorpus,
      MixtureTask), a seqio Task or the name of one.
    config: the model; its vocab_size must cover the Task's vocabulary.
    optimizer: from `training.adafactor` or `training.adamw`.
    plan: how many steps, and when to log, evaluate, save and stop.
    data: how the Task's examples become batches.
    objective: how the loss comes about; the paper's if None.
    decode: what to decode on the way, and how often; nothing if None.
    initial_model_dir: a run whose (best) parameters to start from.
    partitioning: how parameters lie on several devices; see `training.train`.
    model_parallel: devices that share each row.
    seed: of parameters, data order, dropout and what the objective draws.
    dry_run: print the mesh, where parameters lie and the memory per device.
  """
  datasets.refuse_inputs_alone(task, job='train')
  seqio_task = datasets.as_task(task)
  tokenizer = _tokenizer_of(seqio_task, config)
  objective = objective or training.Objective()
  data = jobs.as_begun(data, model_dir)
  context = _context(
    task, tokenizer, data, objective, initial_model_dir, seed=seed
  )
  if decode is not None:
    decode.check(eval_every=plan.eval_every, best_metric=plan.best_metric)
  check_same_run(model_dir, config, context)
  layout = dict(mesh=_mesh(model_parallel), partitioning=partitioning)
  if dry_run:
    speaking.say(
      memory_plan.describe_training(
        config,
        training.freeze(optimizer, objective.base.frozen),
        batch_size=data.batch_size,
        **layout,
      )
    )
    return None

  def batches(skip):
    # Asked for once the directory is known to be this job's alone.
    gin_runner.write_operative_config(model_dir, 'train.gin')
    return datasets.train_batches(
      seqio_task,
      data,
      seed=seed,
      skip=skip,
      num_shards=jax.process_count(),
      shard_id=jax.process_index(),
    )

  result = training.train(
    training.multi_exit_stage(
      config,
      optimizer,
      objective=objective,
      seed=seed,
      initial_params=_initial_params(
        initial_model_dir, config, tokenizer, model_dir
      ),
    ),
    batches,
    plan=plan,
    model_dir=model_dir,
    evaluators=_evaluators(
      config, seqio_task, data, decode, tokenizer, last_step=plan.num_steps
    ),
    vocabulary=tokenizer,
    seen_rows=lambda: seen_rows.of_run(
      task,
      initial_model_dir,
      selected=seen_rows.selected_on(data.eval_examples, decode),
    ),
    context=context,
    loggers=(TensorBoardLogger(os.path.join(model_dir, 'tensorboard')),),
    **layout,
  )
  _draw_losses(model_dir)
  return result


def _tokenizer_of(seqio_task, config: model.T5Config) -> Tokenizer:
  """Returns the Task's tokenizer, for which the model must have rows."""
  tokenizer = datasets.tokenizer_of(
    seqio_task.output_features['targets'].vocabulary
  )
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'the vocabulary of {seqio_task.name} has {tokenizer.vocab_size} pieces, '
      f'the model only {config.vocab_size} rows: set vocab_size to at least '
      'the former (a multiple of 128 suits accelerators)'
    )
  return tokenizer


def _context(
  task, tokenizer, data, objective, initial_model_dir, *, seed
) -> dict[str, Any]:
  """Returns what a restart must give again."""
  seqio_task = datasets.as_task(task)
  # What is not the default changes the data or the parameters as well.
  optional = {
    'frozen': list(objective.base.frozen),
    'initial_model_dir': initial_model_dir,
    'prefixes': _prefixes(seqio_task),
  }
  return {
    'task': seqio_task.name,
    **vocabulary_context(tokenizer),
    'prefix': datasets.prefix_of(task),
    'feature_lengths': data.lengths,
    'seed': seed,
    **data.context(),
    **objective.context(),
    **{name: value for name, value in optional.items() if value},
  }


def _evaluators(
  config, seqio_task, data, decode, tokenizer, *, last_step
) -> dict[str, training.Evaluator]:
  """Returns what measures the validation split on the way."""
  validation = functools.partial(
    datasets.eval_batches,
    seqio_task,
    data.batch_size,
    feature_lengths=data.lengths,
    split='validation',
    inputs_cut=data.inputs_cut,
  )
  evaluators = {
    'validation': training.teacher_forced_evaluator(
      config, functools.partial(validation, max_examples=data.eval_examples)
    )
  }
  if decode is not None and decode.every is not None:
    evaluators['decoding'] = decode.evaluator(
      config,
      validation,
      tokenizer=tokenizer,
      max_length=data.lengths['targets'],
      last_step=last_step,
    )
  return evaluators


def _mesh(model_parallel: int) -> jax.sharding.Mesh | None:
  """Returns a mesh of all devices; None for a single one."""
  if jax.device_count() == 1 and model_parallel == 1:
    return None
  return sharding.make_mesh(model=model_parallel)


def _prefixes(seqio_task) -> dict[str, str]:
  """Returns the prefixes of a mixture's parts, whose own is none."""
  parts = datasets.subtasks_of(seqio_task)
  if len(parts) == 1:
    return {}
  return {part.name: datasets.prefix_of(part) for part in parts}


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
  for note in loaded.notes:
    speaking.say(f'{note} The run that starts from it has no such rule.')
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


if __name__ == '__main__':
  gin_runner.main('train', takes_dry_run=True)

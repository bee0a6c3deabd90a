"""What a run's model says to inputs of a Task, kept to learn from.

No reference is read: the targets are the model's own greedy outputs. They lie
beside the part that learns from them, as token ids, and decoded rows in the
run's `decodes`, so that a restart, whenever it comes, decodes nothing twice.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from calm_jax import data as datasets
from calm_jax import decoding, evaluation, runs, training
from calm_jax.cli import jobs
from calm_jax.data import batches as batching
from calm_jax.processes import speaking


def decode_own_outputs(
  loaded: runs.LoadedRun,
  task: Any,
  split: str,
  path: str,
  *,
  model_dir: str,
  layout: evaluation.BatchLayout,
  seed: int,
  max_inputs: int | None,
) -> None:
  """Writes inputs of a split and what the full model says, unless it is there.

  Args:
    loaded: the run.
    task: the Task; its targets are not looked at.
    split: the split.
    path: the file of token ids to write, as `training.write_npz` does.
    model_dir: the run's directory.
    layout: how rows are decoded together.
    seed: of the inputs that are drawn.
    max_inputs: how many different ones at most; None for all.
  """
  about = {
    'parameters': loaded.fingerprint,
    'task': datasets.as_task(task).name,
    'split': split,
    'seed': seed,
    'max_inputs': max_inputs,
    'feature_lengths': dict(loaded.feature_lengths),
    'prefix': loaded.prefix,
    'suppressed_tokens': list(loaded.suppressed_tokens),
  }
  if os.path.exists(path) and training.npz_metadata(path) == about:
    speaking.say(f'{path}: what the model says is there already')
    return
  inputs = _different_inputs(loaded, task, split, seed, max_inputs)
  length = max(map(len, inputs))
  made = batching.batch_examples(
    [{'inputs': ids, 'targets': ids[:1]} for ids in inputs],
    layout.batch_size,
    [(length, 1)],
  )
  decode = jobs.dataset_decoder(loaded, layout, model_dir=model_dir)
  said = decode(
    [
      {name: batch[name] for name in ('encoder_input_tokens', 'num_valid')}
      for batch, _ in made
    ],
    policy=decoding.ComputePolicy(),
  )
  examples = [
    {'inputs': ids, 'targets': tokens[:count]}
    for ids, tokens, count in zip(
      inputs, said.tokens, said.lengths, strict=True
    )
    # None where logits were not finite from the start.
    if count
  ]
  training.write_npz(path, examples, metadata=about)
  speaking.say(
    f'{path}: {len(examples):,} inputs of {split}, {said.num_tokens:,} tokens '
    'that the model says'
  )


def _different_inputs(
  loaded: runs.LoadedRun,
  task: Any,
  split: str,
  seed: int,
  max_inputs: int | None,
) -> list[np.ndarray]:
  """Returns inputs as the model reads them, in an order drawn by the seed."""
  plan = datasets.DataPlan(feature_lengths=loaded.feature_lengths)
  found: dict[bytes, np.ndarray] = {}
  for ids in _inputs(task, plan, split, seed):
    found.setdefault(ids.tobytes(), ids)
    if len(found) == max_inputs:
      break
  if not found:
    raise ValueError(
      f'{datasets.as_task(task).name} has no inputs in its split {split!r}'
    )
  return list(found.values())


def _inputs(
  task: Any, plan: datasets.DataPlan, split: str, seed: int
) -> Iterator[np.ndarray]:
  """Yields the ids of every input of a split, once through."""
  for batch in datasets.train_batches(
    task, plan, seed=seed, split=split, num_epochs=1
  ):
    for row in batch['encoder_input_tokens'][: batch['num_valid']]:
      yield row[: np.count_nonzero(row)]

"""A script for test_sharding.py: one process of two that train together.

Given a directory, a port, its number and the strategy; every process has two
devices. Process 0 prints one line of JSON.
"""

import dataclasses
import itertools
import json
import pathlib
import sys

import jax

jax.config.update('jax_cpu_enable_async_dispatch', False)
directory, port, number, partitioning = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(number))

from cases import training_cases

from calm_jax import checkpoints, records, sharding, training
from calm_jax.processes import collectives


def own_rows(skip):
  """The rows of this process: half of every batch."""
  for seed in itertools.count(skip):
    batch = training_cases.batch(seed)
    mine = slice(4 * int(number), 4 * int(number) + 4)
    yield {name: array[mine] for name, array in batch.items()}


def train(num_steps, **limits):
  """Trains, or goes on to train."""
  return training.train(
    training.multi_exit_stage(
      dataclasses.replace(training_cases.CONFIG, num_decoder_layers=1),
      OPTIMIZER,
    ),
    own_rows,
    plan=training.Plan(
      num_steps=num_steps, log_every=1, checkpoint_every=2, **limits
    ),
    model_dir=directory,
    mesh=sharding.make_mesh(),
    partitioning=partitioning,
  )


OPTIMIZER = training.adamw(0.01)
train(2)
result = train(4)
# Clocks of processes differ; both must stop at the same step.
stopped = train(10**6, max_minutes=result.seconds / 60 + 0.02)
rows = records.read_jsonl(pathlib.Path(directory) / 'train_log.jsonl')
losses = [row['loss'] for row in rows if row['kind'] == 'train'][:4]
latest = checkpoints.latest_step(directory)
if collectives.is_main_process():
  answer = {'losses': losses, 'step': stopped.step, 'latest': latest}
  print(json.dumps(answer))

"""A script for test_sharding.py: the same run on one device and on meshes.

Started with eight devices forced by XLA_FLAGS, it is given a directory and the
names of runs, and prints one line of JSON.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
from cases import training_cases

from calm_jax import records, sharding, training

# Eight devices on few cores: programs in flight would wait for each other's
# threads.
jax.config.update('jax_cpu_enable_async_dispatch', False)

CONFIG = dataclasses.replace(
  training_cases.CONFIG, dropout_rate=0.2, num_decoder_layers=1
)
OPTIMIZER = training.adamw(0.01)


def train(folder, *, initial_params=None, **layout):
  """Trains 3 steps, or restores them; returns parameters and what it saw."""
  seen = {}

  def evaluator(params, step):
    del step
    kernel = params['decoder']['layers_0']['mlp']['wo']['kernel']
    seen['spec'] = str(getattr(kernel.sharding, 'spec', None))
    seen['part'] = kernel.addressable_shards[0].data.shape
    return {'largest': float(kernel.max())}

  result = training.train(
    training.multi_exit_stage(CONFIG, OPTIMIZER, initial_params=initial_params),
    training_cases.batches,
    plan=training.Plan(
      num_steps=3, log_every=1, eval_every=3, best_metric='largest'
    ),
    model_dir=folder,
    evaluators={'kernel': evaluator},
    **layout,
  )
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  return result.params, {**seen, 'losses': losses}


def train_classifier(folder, **layout):
  """Trains a classifier of a frozen model for 3 steps; returns its losses."""
  config = dataclasses.replace(CONFIG, num_decoder_layers=2)
  params = training.init_train_state(config, OPTIMIZER).params
  training.train(
    training.classifier_stage(config, params, OPTIMIZER),
    training_cases.batches,
    plan=training.Plan(num_steps=3, log_every=1),
    model_dir=folder,
    **layout,
  )
  rows = records.read_jsonl(folder / 'train_log.jsonl')
  return [row['loss'] for row in rows if row['kind'] == 'train']


def fresh_params():
  """The parameters that a run of seed 0 starts from, on the first device."""
  return training.init_train_state(CONFIG, OPTIMIZER).params


def is_same(first, second):
  """Whether two trees hold the same bits, wherever they lie."""
  equal = jax.tree.map(
    lambda one, two: np.array_equal(np.array(one), np.array(two)), first, second
  )
  return all(jax.tree.leaves(equal))


def main(directory, *names):
  """Prints what test_sharding.py compares."""
  root = pathlib.Path(directory)
  wide = sharding.make_mesh()
  crossed = sharding.make_mesh(data=4, model=2)
  runs = {
    'one': lambda: {},
    'data': lambda: dict(mesh=wide),
    # Parameters that are given on one device, and others below that are not.
    'fsdp': lambda: dict(
      mesh=wide, partitioning='fsdp', initial_params=fresh_params()
    ),
    'crossed': lambda: dict(mesh=crossed),
    'crossed_fsdp': lambda: dict(mesh=crossed, partitioning='fsdp'),
  }
  found, saved = {}, {}
  for name in names:
    saved[name], found[name] = train(root / name, **runs[name]())
  table = (root / 'fsdp' / 'parameters.txt').read_text()
  # The finished run, restored on other topologies.
  restored = [
    train(root / 'fsdp', mesh=crossed, partitioning='fsdp')[0],
    train(root / 'fsdp')[0],
  ]
  found['restored'] = [is_same(saved['fsdp'], other) for other in restored]
  found['table'] = table
  embedding = restored[0]['token_embedder']['embedding']
  found['restored_spec'] = str(embedding.sharding.spec)
  found['classifier'] = [
    train_classifier(root / 'classifier' / name, **layout)
    for name, layout in (
      ('one', {}),
      ('fsdp', dict(mesh=crossed, partitioning='fsdp')),
    )
  ]
  print(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])

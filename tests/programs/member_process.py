"""A script for test_several_processes.py: one process of several, a tiny job.

Its flags are those of a job, and --job names the function below that it runs
once it is connected.
"""

import dataclasses
import itertools
import sys
import time

import jax
from absl import app, flags
from jax.experimental import multihost_utils

from calm_jax.processes.start import joining

DIRECTORY = flags.DEFINE_string('directory', None, 'What is written to.')
CONFIGURATION = flags.DEFINE_string('configuration', 'a = 1', 'Of gin.')
PRETEND = flags.DEFINE_string('pretend_version', None, 'Of calm_jax.')
ERROR = flags.DEFINE_string('error', None, 'Why it cannot go on.')
JOB = flags.DEFINE_string('job', 'nothing', 'What to do.')
STEPS = flags.DEFINE_integer('steps', 4, 'Of training.')


def nothing():
  """Adds up a number of every process."""
  total = multihost_utils.process_allgather(jax.process_index()).sum()
  print(f'sum {total}')


def own_error():
  """Fails in one process."""
  nothing()
  if jax.process_index() == jax.process_count() - 1:
    raise ValueError('a bad row\nin the data')
  nothing()


def train():
  """Trains; says so at every step."""
  from cases import training_cases

  from calm_jax import sharding, training

  def own_rows(skip):
    for seed in itertools.count(skip):
      batch = training_cases.batch(seed)
      first = 4 * jax.process_index()
      time.sleep(0.05)
      yield {name: rows[first : first + 4] for name, rows in batch.items()}

  training.train(
    training.multi_exit_stage(
      dataclasses.replace(training_cases.CONFIG, num_decoder_layers=1),
      training.adamw(0.01),
    ),
    own_rows,
    plan=training.Plan(num_steps=STEPS.value, log_every=1, checkpoint_every=5),
    model_dir=DIRECTORY.value,
    mesh=sharding.make_mesh(),
  )


def main(arguments):
  del arguments
  if PRETEND.value:
    joining.environment.provenance.versions = lambda *_: {
      'calm_jax': PRETEND.value
    }
  process = joining.start(
    configuration=CONFIGURATION.value,
    directories={'model_dir': DIRECTORY.value} if DIRECTORY.value else {},
    error=ERROR.value,
  )
  process.run(globals()[JOB.value], expected=(ValueError,))
  print('done')


if __name__ == '__main__':
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  app.run(main, argv=sys.argv)

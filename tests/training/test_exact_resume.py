"""kill -9 at any moment, the same command again: the same run, bit for bit."""

import os
import random
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from calm_jax import records
from calm_jax.checkpoints import directories, native

SCRIPT = """
  import sys, jax
  jax.config.update('jax_compilation_cache_dir', sys.argv[2])
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  from cases import training_cases
  from calm_jax import training
  evaluator = training.teacher_forced_evaluator(
    training_cases.CONFIG, lambda: [training_cases.batch(900)]
  )
  training.train(
    training.multi_exit_stage(
      training_cases.CONFIG, training.adamw(0.003, weight_decay=0.01)
    ),
    training_cases.batches,
    plan=training.Plan(
      num_steps=300, log_every=5, eval_every=10, checkpoint_every=15,
      max_to_keep=1,
    ),
    model_dir=sys.argv[1],
    evaluators={'validation': evaluator},
  )
"""


def start(run, cache):
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(SCRIPT), str(run), str(cache)],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors[-3000:]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run, and a compilation cache for the others."""
  root = tmp_path_factory.mktemp('whole')
  finish(start(root / 'run', root / 'cache'))
  return root


def after_a_while(run, chance):
  """Waits up to a second from the first sign of life of this start."""
  del run
  time.sleep(chance.uniform(0, 1))


def in_the_middle_of_a_save(run, chance):
  """Waits for a half-written checkpoint, of the run or its best one."""
  deadline = time.monotonic() + chance.uniform(0.5, 1.5)
  while time.monotonic() < deadline:
    for folder in (run, run / 'best'):
      if list(folder.glob('*.orbax-checkpoint-tmp*')):
        return


def kill_and_restart(run, cache, moment, chance, *, kills):
  """Returns how many of the kills hit a run that was not finished."""
  hits = 0
  for _ in range(kills):
    log = run / 'train_log.jsonl'
    size = log.stat().st_size if log.exists() else 0
    process = start(run, cache)
    # A resumed run shortens the log before it goes on.
    while process.poll() is None:
      if log.exists() and log.stat().st_size not in (0, size):
        break
      time.sleep(0.01)
    moment(run, chance)
    hits += process.poll() is None
    process.kill()
    process.communicate()
  finish(start(run, cache))
  return hits


def curves(run):
  """The log without clocks."""
  rows = []
  for row in records.read_jsonl(run / 'train_log.jsonl'):
    if row['kind'] != 'start':
      rows.append({k: v for k, v in row.items() if 'second' not in k})
  return rows


@pytest.mark.slow
@pytest.mark.parametrize('moment', [after_a_while, in_the_middle_of_a_save])
@pytest.mark.parametrize('seed', range(3))
def test_a_killed_run_equals_an_uninterrupted_one(
  whole, tmp_path, moment, seed
):
  run = tmp_path / 'run'
  chance = random.Random(seed)
  hits = kill_and_restart(run, whole / 'cache', moment, chance, kills=3)
  assert hits, 'every kill came too late'
  assert curves(run) == curves(whole / 'run')
  for path in ('checkpoint_300', 'best'):
    jax.tree.map(
      np.testing.assert_array_equal,
      native.load_params(run / path).params,
      native.load_params(whole / 'run' / path).params,
    )
  assert directories.best_step(run) == directories.best_step(whole / 'run')
  left = [name for name in os.listdir(run) if name.startswith('checkpoint')]
  assert left == ['checkpoint_300']

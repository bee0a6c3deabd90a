import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import training_cases

from calm_jax import records, training
from calm_jax.checkpoints import directories, native

CONFIG = training_cases.CONFIG
# One object for all runs, so that its step is compiled once.
OPTIMIZER = training.adafactor(0.02)


def validation(seeds=(900, 901)):
  return training.teacher_forced_evaluator(
    CONFIG, lambda: [training_cases.batch(seed) for seed in seeds]
  )


def train(model_dir, batches=training_cases.batches, **changes):
  arguments = dict(
    optimizer=OPTIMIZER,
    num_steps=6,
    model_dir=model_dir,
    log_every=2,
    eval_every=3,
    checkpoint_every=3,
  )
  return training.train(CONFIG, batches, **{**arguments, **changes})


def log(model_dir, kind):
  rows = records.read_jsonl(model_dir / 'train_log.jsonl')
  return [row for row in rows if row['kind'] == kind]


def test_the_loss_of_every_exit_falls(tmp_path, capsys):
  result = train(
    tmp_path,
    num_steps=100,
    log_every=25,
    eval_every=50,
    checkpoint_every=100,
    evaluators={'validation': validation()},
  )
  assert (result.step, result.stopped_because) == (100, 'num_steps')
  rows = log(tmp_path, 'train')
  first, last = (np.array(rows[i]['exit_losses']) for i in (0, -1))
  assert (last < first - 0.1).all()
  assert rows[-1]['exit_accuracies'][-1] > rows[0]['exit_accuracies'][-1]
  for (
    name
  ) in 'learning_rate tokens_per_second steps_per_second seconds'.split():
    assert rows[-1][name] > 0
  evaluation = log(tmp_path, 'evaluation')[-1]
  assert evaluation['validation_loss'] == evaluation['validation_loss_exit_2']
  assert result.best_value == evaluation['validation_loss']
  printed = capsys.readouterr().out
  assert '\r' not in printed
  assert 'step 100/100  loss' in printed and 'tokens/s' in printed


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
  whole = train(tmp_path / 'whole')
  train(tmp_path / 'parts', num_steps=3)
  resumed = train(tmp_path / 'parts')
  assert resumed.step == 6
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  # A plain iterable: the batches of the first 3 steps are drawn and dropped.
  train(tmp_path / 'plain', training_cases.batches(0), num_steps=3)
  plain = train(tmp_path / 'plain', training_cases.batches(0))
  jax.tree.map(np.testing.assert_array_equal, whole.params, plain.params)
  steps = [row['step'] for row in log(tmp_path / 'parts', 'train')]
  assert steps == [2, 3, 4, 6]


def test_a_finished_run_is_not_trained_again(tmp_path):
  first = train(tmp_path, num_steps=3)
  second = train(tmp_path, num_steps=3)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  assert len(log(tmp_path, 'train')) == 2


def test_rows_of_lost_steps_leave_the_log(tmp_path):
  train(tmp_path, num_steps=3)
  path = tmp_path / 'train_log.jsonl'
  with open(path, 'a') as file:
    file.write('{"kind": "train", "step": 5}\n{"kind": "tra')
  train(tmp_path)
  steps = [row['step'] for row in log(tmp_path, 'train')]
  assert steps == sorted(steps) and len(set(steps)) == len(steps)


def test_best_and_latest_checkpoints_are_kept_apart(tmp_path):
  scores = iter([3.0, 1.0, 2.0, 4.0])

  def evaluator(params, step):
    return {'score': next(scores)}

  result = train(
    tmp_path,
    num_steps=8,
    eval_every=2,
    checkpoint_every=2,
    evaluators={'made up': evaluator},
    best_metric='score',
  )
  assert (result.best_step, result.best_value) == (4, 1.0)
  assert directories.best_step(tmp_path) == 4
  assert directories.steps(tmp_path) == [6, 8]
  assert native.load_params(tmp_path).metadata['step'] == 4


def test_patience_counts_evaluations_and_survives_a_restart(tmp_path):
  def evaluator(params, step):
    return {'score': -float(step == 2)}

  arguments = dict(
    eval_every=1,
    checkpoint_every=1,
    evaluators={'made up': evaluator},
    best_metric='score',
    patience=3,
  )
  train(tmp_path, num_steps=3, **arguments)
  result = train(tmp_path, num_steps=20, **arguments)
  assert (result.step, result.stopped_because) == (5, 'patience')
  assert result.best_step == 2


def test_a_higher_metric_can_be_better(tmp_path):
  result = train(
    tmp_path,
    eval_every=2,
    evaluators={'made up': lambda params, step: {'bleu': float(step)}},
    best_metric='bleu',
    best_mode='max',
  )
  assert result.best_step == 6


def test_time_and_data_can_end_a_run(tmp_path):
  result = train(tmp_path / 'time', num_steps=10**6, max_minutes=1e-9)
  assert result.stopped_because == 'max_minutes'
  few = itertools.islice(training_cases.batches(0), 4)
  result = train(tmp_path / 'data', few)
  assert (result.step, result.stopped_because) == (4, 'end of data')
  assert directories.latest_step(tmp_path / 'data') == 4


def test_a_nan_loss_stops_the_run_and_is_never_saved(tmp_path):
  def batches(skip):
    for step, batch in enumerate(training_cases.batches(skip), skip + 1):
      if step == 4:
        batch['decoder_loss_weights'] *= np.nan
      yield batch

  with pytest.raises(
    FloatingPointError, match='step 4 .*checkpoint_2'
  ) as error:
    train(
      tmp_path,
      batches,
      num_steps=20,
      log_every=6,
      eval_every=1000,
      checkpoint_every=2,
    )
  assert 'learning rate 0.02' in str(error.value)
  assert directories.latest_step(tmp_path) == 2
  # Once the cause is gone, the same command goes on from there.
  assert train(tmp_path).step == 6


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
  """The step that spoils them still has a good loss."""

  def spoil(updates, state, params=None):
    del params
    return jax.tree.map(lambda leaf: leaf * jnp.nan, updates), state

  with pytest.raises(FloatingPointError, match='step 1 .*no checkpoint'):
    training.train(
      dataclasses.replace(CONFIG, dropout_rate=0.0),
      training_cases.batches,
      optimizer=training.Optimizer(
        optax.GradientTransformation(lambda params: (), spoil),
        training.constant(0.1),
      ),
      num_steps=1,
      model_dir=tmp_path,
    )
  assert directories.latest_step(tmp_path) is None


def test_a_failing_evaluator_loses_nothing(tmp_path):
  def failing(params, step):
    raise RuntimeError('no scorer')

  with pytest.raises(RuntimeError, match='no scorer'):
    train(tmp_path, eval_every=4, evaluators={'failing': failing})
  assert directories.latest_step(tmp_path) == 4


def test_a_write_that_fails_ends_the_run_at_a_later_step(
  tmp_path, monkeypatch, capsys
):
  train(tmp_path, num_steps=3)
  finalize = native.ocp.CompositeCheckpointHandler.finalize

  def full(self, directory):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(native.ocp.CompositeCheckpointHandler, 'finalize', full)
  with pytest.raises(native.SaveError, match='checkpoint_6.*full.*point_3'):
    train(tmp_path, num_steps=10**6, log_every=10**6, eval_every=10**6)
  assert directories.steps(tmp_path) == [3]
  # At the end of a run nothing is left to notice it later.
  with pytest.raises(native.SaveError, match='checkpoint_5.*full.*point_3'):
    train(tmp_path, num_steps=5)
  assert 'finished' not in capsys.readouterr().out.split('resumes')[1]
  monkeypatch.setattr(
    native.ocp.CompositeCheckpointHandler, 'finalize', finalize
  )
  whole = train(tmp_path / 'whole')
  resumed = train(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


def test_an_error_is_heard_even_if_saving_fails_too(
  tmp_path, monkeypatch, capsys
):
  train(tmp_path, num_steps=3)

  def full(self, directory):
    raise OSError(28, 'No space left on device')

  def failing(params, step):
    raise RuntimeError('no scorer')

  monkeypatch.setattr(native.ocp.CompositeCheckpointHandler, 'finalize', full)
  with pytest.raises(RuntimeError, match='no scorer'):
    train(tmp_path, eval_every=4, evaluators={'failing': failing})
  assert 'saving failed as well' in capsys.readouterr().out
  assert directories.steps(tmp_path) == [3]


def test_loggers_get_every_row_of_the_log(tmp_path):
  rows = [[], []]
  train(
    tmp_path,
    loggers=[rows[0].append, rows[1].append],
    evaluators={'validation': validation()},
  )
  written = list(records.read_jsonl(tmp_path / 'train_log.jsonl'))
  assert [row['kind'] for row in written].count('evaluation') == 2
  for heard in rows:
    assert [records.to_jsonable(row) for row in heard] == written
  train_row = next(row for row in written if row['kind'] == 'train')
  for name in ('exit_losses', 'exit_accuracies'):
    assert len(train_row[name]) == CONFIG.num_decoder_layers


def test_the_parameters_are_listed(tmp_path):
  result = train(tmp_path, num_steps=1)
  table = (tmp_path / 'parameters.txt').read_text()
  leaves = jax.tree.leaves(result.params)
  total = sum(leaf.size for leaf in leaves)
  assert f'{len(leaves)} parameter tensors, {total:,} numbers' in table
  assert 'decoder/layers_1/mlp/wi_0/kernel  ' in table


def test_ctrl_c_ends_an_evaluation_at_once_and_saves(tmp_path):
  def evaluator(params, step):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

  started = time.monotonic()
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, eval_every=4, evaluators={'slow': evaluator})
  assert time.monotonic() - started < 50
  assert directories.latest_step(tmp_path) == 4
  assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_evaluation_is_made_up_for(tmp_path):
  def interrupted(params, step):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / 'cut', eval_every=4, evaluators={'slow': interrupted})
  for run in ('cut', 'whole'):
    train(tmp_path / run, eval_every=4, evaluators={'validation': validation()})
  cut, whole = (log(tmp_path / run, 'evaluation') for run in ('cut', 'whole'))
  assert [row['step'] for row in cut] == [4, 6]
  for ours, theirs in zip(cut, whole, strict=True):
    assert ours['validation_loss_exit_1'] == theirs['validation_loss_exit_1']


def test_the_last_evaluation_is_remembered_when_the_run_goes_on(tmp_path):
  values = {4: 2.0, 6: 1.0, 8: 1.5}

  def go_on(num_steps):
    return train(
      tmp_path,
      num_steps=num_steps,
      eval_every=4,
      # The last step is saved before it is evaluated.
      checkpoint_every=3,
      evaluators={'v': lambda params, step: {'validation_loss': values[step]}},
    )

  assert go_on(6).best_step == 6
  assert go_on(6).best_step == 6
  assert [row['step'] for row in log(tmp_path, 'evaluation')] == [4, 6]
  assert go_on(8).best_step == 6
  assert directories.latest_step(tmp_path / 'best') == 6


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(num_steps=0), 'num_steps'),
    (dict(log_every=2.5), 'log_every'),
    (dict(best_mode='best'), "'best'"),
    (dict(patience=0), 'patience'),
    (dict(max_minutes=-1.0), 'max_minutes'),
    (dict(layer_weights=(1.0,)), 'one weight per decoder layer'),
    (dict(num_microbatches=0), 'num_microbatches'),
    (dict(mesh='all'), "sharding.make_mesh, got 'all'"),
    (dict(z_loss=-1.0), 'z_loss'),
    (
      dict(evaluators={'v': lambda params, step: {'other': 1.0}}),
      "'validation_loss' is not among.*other",
    ),
    (
      dict(evaluators=dict.fromkeys('ab', lambda params, step: {'same': 1.0})),
      "'b' returns.*same",
    ),
  ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    train(tmp_path, **changes)


def test_another_run_in_the_directory_is_refused(tmp_path):
  train(tmp_path, num_steps=1, context={'vocabulary_fingerprint': 'abc'})
  with pytest.raises(ValueError, match='abc.*xyz'):
    train(tmp_path, context={'vocabulary_fingerprint': 'xyz'})
  with pytest.raises(ValueError, match='mlp_dim: expected 8, found 32'):
    training.train(
      dataclasses.replace(CONFIG, mlp_dim=8),
      training_cases.batches,
      optimizer=OPTIMIZER,
      num_steps=2,
      model_dir=tmp_path,
    )
  with pytest.raises(ValueError, match="expected None, found 'abc'"):
    train(tmp_path)
  with pytest.raises(ValueError, match='another optimizer'):
    train(
      tmp_path,
      optimizer=training.adamw(),
      context={'vocabulary_fingerprint': 'abc'},
    )


def test_an_empty_validation_set_is_named():
  with pytest.raises(ValueError, match='no target token'):
    validation(seeds=())({}, 0)


SCRIPT = """
  import dataclasses, sys, jax
  jax.config.update('jax_compilation_cache_dir', sys.argv[2])
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  from cases import training_cases
  from calm_jax import training
  training.train(
    dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0),
    training_cases.batches,
    optimizer=training.adafactor(0.02),
    num_steps=10**7,
    model_dir=sys.argv[1],
    log_every=10,
    checkpoint_every=int(sys.argv[3]),
  )
"""


def start(tmp_path, checkpoint_every):
  return subprocess.Popen(
    [
      sys.executable,
      '-c',
      textwrap.dedent(SCRIPT),
      str(tmp_path / 'run'),
      str(tmp_path / 'cache'),
      str(checkpoint_every),
    ],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for(condition, process):
  deadline = time.monotonic() + 300
  while not condition():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.slow
def test_kill_keeps_the_last_checkpoint_and_sigterm_saves(tmp_path):
  """And what comes of it is what an uninterrupted run would have made."""
  run = tmp_path / 'run'
  process = start(tmp_path, 10)
  wait_for(lambda: directories.latest_step(run), process)
  process.kill()
  process.communicate()
  killed_at = directories.latest_step(run)
  native.load_params(run)

  process = start(tmp_path, 10**6)

  def has_gone_on():
    lines = (run / 'train_log.jsonl').read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith('\n')]
    return rows[-1]['kind'] == 'train' and rows[-1]['step'] > killed_at + 50

  wait_for(has_gone_on, process)
  process.send_signal(signal.SIGTERM)
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 143, errors
  assert f'resumes at step {killed_at}' in output
  assert 'interrupted at step' in output
  assert directories.latest_step(run) > killed_at + 50
  native.load_params(run)

  stopped_at = directories.latest_step(run)
  whole = training.train(
    dataclasses.replace(CONFIG, dropout_rate=0.0),
    training_cases.batches,
    optimizer=OPTIMIZER,
    num_steps=stopped_at,
    model_dir=tmp_path / 'whole',
    log_every=10,
    checkpoint_every=10**6,
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    native.load_params(run).params,
    whole.params,
  )
  curves = [
    [
      (row['step'], row['loss'], row['exit_losses'])
      for row in log(path, 'train')
    ]
    for path in (run, tmp_path / 'whole')
  ]
  assert curves[0] == curves[1]

"""One start of a run after the other, whatever is trained: a toy stage."""

import dataclasses
import itertools
import json
import os
import pathlib
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
from cases import toy_stage, training_cases

from calm_jax import records, tokenizer, training
from calm_jax.checkpoints import directories, native
from calm_jax.processes import file_locks


def train(model_dir, batches=toy_stage.batches, **changes):
  """Trains; changes are of the plan, or arguments of `training.train`."""
  numbers = dict(num_steps=6, log_every=2, eval_every=3, checkpoint_every=3)
  fields = training.Plan.__dataclass_fields__
  plan = {key: changes.pop(key) for key in fields if key in changes}
  arguments = dict(
    stage=toy_stage.stage(),
    batches=batches,
    plan=training.Plan(**{**numbers, **plan}),
    model_dir=model_dir,
  )
  return training.train(**{**arguments, **changes})


def log(model_dir, kind):
  rows = records.read_jsonl(pathlib.Path(model_dir) / 'train_log.jsonl')
  return [row for row in rows if row['kind'] == kind]


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def kernel_evaluator(params, step):
  """The distance from what the rows were made with."""
  del step
  kernel = np.asarray(params['toy']['kernel'])
  return {'validation_loss': float(np.abs(kernel - [1, -2, 3]).sum())}


EVALUATORS = {'validation': kernel_evaluator}


def test_a_run_learns_and_says_so(tmp_path, capsys):
  result = train(
    tmp_path,
    num_steps=100,
    log_every=25,
    eval_every=50,
    checkpoint_every=100,
    evaluators=EVALUATORS,
  )
  assert (result.step, result.stopped_because) == (100, 'num_steps')
  rows = log(tmp_path, 'train')
  assert rows[-1]['loss'] < 0.1 * rows[0]['loss']
  for name in (
    'learning_rate',
    'tokens_per_second',
    'steps_per_second',
    'seconds',
  ):
    assert rows[-1][name] > 0
  evaluation = log(tmp_path, 'evaluation')[-1]
  assert result.best_value == evaluation['validation_loss']
  printed = capsys.readouterr().out
  assert '\r' not in printed
  assert '3 parameters, a toy, on 1 x cpu; starts at step 0 of 100' in printed
  assert 'step 100/100  loss' in printed and 'tokens/s' in printed


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
  whole = train(tmp_path / 'whole')
  train(tmp_path / 'parts', num_steps=3)
  resumed = train(tmp_path / 'parts')
  assert resumed.step == 6
  same(whole.params, resumed.params)
  # A plain iterable: the batches of the first 3 steps are drawn and dropped.
  train(tmp_path / 'plain', toy_stage.batches(0), num_steps=3)
  plain = train(tmp_path / 'plain', toy_stage.batches(0))
  same(whole.params, plain.params)
  steps = [row['step'] for row in log(tmp_path / 'parts', 'train')]
  assert steps == [2, 3, 4, 6]


def test_a_finished_run_is_not_trained_again(tmp_path):
  first = train(tmp_path, num_steps=3)
  second = train(tmp_path, num_steps=3)
  same(first.params, second.params)
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
  few = itertools.islice(toy_stage.batches(0), 4)
  result = train(tmp_path / 'data', few)
  assert (result.step, result.stopped_because) == (4, 'end of data')
  assert directories.latest_step(tmp_path / 'data') == 4


def test_a_nan_loss_stops_the_run_and_is_never_saved(tmp_path):
  def batches(skip):
    for step, batch in enumerate(toy_stage.batches(skip), skip + 1):
      if step == 4:
        batch['y'] *= np.nan
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
  assert 'learning rate 0.1' in str(error.value)
  assert directories.latest_step(tmp_path) == 2
  # Once the cause is gone, the same command goes on from there.
  assert train(tmp_path).step == 6


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
  """The step that spoils them still has a good loss."""

  def spoil(updates, state, params=None):
    del params
    return jax.tree.map(lambda leaf: leaf * jnp.nan, updates), state

  optimizer = training.Optimizer(
    optax.GradientTransformation(lambda params: (), spoil),
    training.constant(0.1),
  )
  stage = toy_stage.stage(
    optimizer=optimizer,
    init=lambda params: toy_stage.init(params, optimizer),
    step=toy_stage.make_step(optimizer),
  )
  with pytest.raises(FloatingPointError, match='step 1 .*no checkpoint'):
    train(tmp_path, stage=stage, num_steps=1)
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
  same(whole.params, resumed.params)


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
    evaluators=EVALUATORS,
  )
  written = list(records.read_jsonl(tmp_path / 'train_log.jsonl'))
  assert [row['kind'] for row in written].count('evaluation') == 2
  for heard in rows:
    assert [records.to_jsonable(row) for row in heard] == written


def test_the_parameters_are_listed(tmp_path):
  result = train(tmp_path, num_steps=1)
  table = (tmp_path / 'parameters.txt').read_text()
  assert result.params['toy']['kernel'].size == 3
  assert '1 parameter tensors, 3 numbers' in table
  assert 'toy/kernel  ' in table


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
    train(tmp_path / run, eval_every=4, evaluators=EVALUATORS)
  cut, whole = (log(tmp_path / run, 'evaluation') for run in ('cut', 'whole'))
  assert [row['step'] for row in cut] == [4, 6]
  for ours, theirs in zip(cut, whole, strict=True):
    assert ours['validation_loss'] == theirs['validation_loss']


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
    (dict(checkpoint_every=True), 'checkpoint_every'),
    (dict(max_to_keep=0), 'max_to_keep'),
    (dict(best_mode='best'), "'best'"),
    (dict(patience=0), 'patience'),
    (dict(max_minutes=-1.0), 'max_minutes'),
    (dict(mesh='all'), "sharding.make_mesh, got 'all'"),
    (dict(batches=[]), 'no batch to train'),
    (dict(batches=lambda skip: []), 'no batch to train'),
    (dict(batches=[{}]), 'the batch holds'),
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
  # Only an evaluator is asked after steps that are worth keeping.
  kept = 3 if 'evaluators' in changes else None
  assert directories.latest_step(tmp_path) == kept


def test_another_run_in_the_directory_is_refused(tmp_path):
  train(tmp_path, num_steps=1, context={'vocabulary_fingerprint': 'abc'})
  rows = log(tmp_path, 'start')
  with pytest.raises(ValueError, match='abc.*xyz'):
    train(tmp_path, context={'vocabulary_fingerprint': 'xyz'})
  config = dataclasses.replace(training_cases.CONFIG, mlp_dim=8)
  with pytest.raises(ValueError, match='mlp_dim: expected 8, found 32'):
    train(tmp_path, stage=toy_stage.stage(config=config))
  with pytest.raises(ValueError, match="expected None, found 'abc'"):
    train(tmp_path)
  # What the stage says of itself counts as well.
  context = {'vocabulary_fingerprint': 'abc'}
  with pytest.raises(ValueError, match="kind: expected 'toy', found None"):
    train(
      tmp_path,
      stage=toy_stage.stage(context={'kind': 'toy'}),
      context=context,
    )
  optimizer = training.adafactor()
  with pytest.raises(ValueError, match='another optimizer'):
    train(
      tmp_path,
      stage=toy_stage.stage(
        optimizer=optimizer,
        init=lambda params: toy_stage.init(params, optimizer),
        step=toy_stage.make_step(optimizer),
      ),
      context=context,
    )
  assert log(tmp_path, 'start') == rows


def test_a_signal_between_steps_saves_and_the_same_call_goes_on(tmp_path):
  def interrupted(skip):
    for step, batch in enumerate(toy_stage.batches(skip), skip):
      if step == 4:
        os.kill(os.getpid(), signal.SIGINT)
      yield batch

  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / 'parts', interrupted)
  assert directories.latest_step(tmp_path / 'parts') == 5
  same(train(tmp_path / 'parts').params, train(tmp_path / 'whole').params)


def test_batches_are_taken_one_per_step(tmp_path):
  taken = []

  def batches(skip):
    for number in itertools.count(skip):
      taken.append(number)
      yield toy_stage.batch(number)

  train(tmp_path, batches, num_steps=3)
  train(tmp_path, batches)
  assert taken == list(range(6))


def test_a_run_starts_from_given_parameters(tmp_path):
  given = {'toy': {'kernel': np.array([1, -2, 3], np.float32)}}
  result = train(tmp_path, stage=toy_stage.stage(params=given), num_steps=1)
  near = np.abs(np.asarray(result.params['toy']['kernel']) - [1, -2, 3])
  assert 0 < near.max() < 0.2
  # The first step donates its input: what was given is still there.
  same(given, {'toy': {'kernel': np.array([1, -2, 3], np.float32)}})


def test_constants_are_read_and_stay(tmp_path):
  constants = {'offset': np.full((), 5, np.float32)}
  plain = train(tmp_path / 'plain', num_steps=3)
  other = train(
    tmp_path / 'offset', num_steps=3, stage=toy_stage.stage(constants=constants)
  )
  assert (other.params['toy']['kernel'] != plain.params['toy']['kernel']).any()
  assert constants['offset'] == 5
  assert 'offset' not in (tmp_path / 'offset' / 'parameters.txt').read_text()


# The rows that a run has seen.


def rows_of(trained, selected=()):
  return lambda: records.TrainingRows(
    np.array(trained, np.uint64), np.array(selected, np.uint64)
  )


def seen(directory):
  rows = records.read_training_rows(directory / records.TRAINING_ROWS_NAME)
  return rows.trained.tolist(), rows.selected.tolist()


def test_a_run_that_goes_on_adds_to_the_rows_it_has_seen(tmp_path):
  train(tmp_path, seen_rows=rows_of([3, 1], [9]), num_steps=3)
  assert seen(tmp_path) == ([1, 3], [9])
  train(tmp_path, seen_rows=rows_of([2, 3], [8]))
  assert seen(tmp_path) == ([1, 2, 3], [8, 9])


def test_rows_without_a_checkpoint_were_never_trained_on(tmp_path):
  records.write_training_rows(tmp_path / records.TRAINING_ROWS_NAME, [7], [7])
  train(tmp_path, seen_rows=rows_of([1]), num_steps=1)
  assert seen(tmp_path) == ([1], [])


def test_a_refused_run_leaves_the_rows_alone(tmp_path):
  train(tmp_path, seen_rows=rows_of([1]), num_steps=1)
  with pytest.raises(ValueError, match='of another run'):
    train(tmp_path, seen_rows=rows_of([2]), context={'task': 'other'})
  assert seen(tmp_path) == ([1], [])


def test_a_part_adds_to_the_rows_of_its_model(tmp_path):
  stage, asked = toy_stage.stage(inside=True), []

  def rows():
    asked.append(1)
    return rows_of([2])()

  # Without the model's own rows a list of it would look complete and not be.
  train(tmp_path / 'part', stage=stage, seen_rows=rows, num_steps=1)
  assert asked and seen(tmp_path / 'part') == ([2], [])
  assert not list(tmp_path.glob('*rows*'))
  path = tmp_path / records.TRAINING_ROWS_NAME
  records.write_training_rows(path, [1], [9])
  train(tmp_path / 'other', stage=stage, seen_rows=rows, num_steps=1)
  assert seen(tmp_path) == ([1, 2], [9])
  assert not list((tmp_path / 'other').glob('*rows*'))


# The vocabulary.


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokens')
  words = ['red green blue', 'green blue yellow', 'blue yellow red']
  tokenizer.train_sentencepiece(
    words * 20, folder / 'vocabulary.model', vocab_size=18
  )
  return folder


@pytest.mark.parametrize('given', ['folder', 'file', 'tokenizer', 'bytes'])
def test_the_vocabulary_goes_into_the_run_directory(
  tmp_path, vocabulary, given
):
  path = vocabulary / 'vocabulary.model'
  wanted = tokenizer.load_tokenizer('bytes' if given == 'bytes' else path)
  what = {
    'folder': vocabulary,
    'file': path,
    'tokenizer': wanted,
    'bytes': 'bytes',
  }[given]
  train(tmp_path, vocabulary=what, num_steps=1, context={'task': 'x'})
  context = native.load_params(tmp_path).metadata['context']
  assert context == {'task': 'x', **tokenizer.vocabulary_context(wanted)}
  found = tokenizer.find_tokenizer(context, tmp_path)
  assert found.fingerprint == wanted.fingerprint
  assert (tmp_path / 'vocabulary.model').exists() == (given != 'bytes')


def test_a_vocabulary_that_did_not_make_the_ids_is_refused(
  tmp_path, vocabulary
):
  ids = tokenizer.vocabulary_context(tokenizer.load_tokenizer('bytes'))
  with pytest.raises(ValueError, match='give the vocabulary that made them'):
    train(tmp_path / 'run', vocabulary=vocabulary, context=ids)
  with pytest.raises(FileNotFoundError, match='vocabulary.model'):
    train(tmp_path / 'run', vocabulary=tmp_path)
  assert not (tmp_path / 'run').exists()


# A run that is killed.

SCRIPT = """
  import sys
  from cases import toy_stage
  from calm_jax import training
  training.train(
    toy_stage.stage(),
    toy_stage.batches,
    plan=training.Plan(
      num_steps=10**7, log_every=10, checkpoint_every=int(sys.argv[2])
    ),
    model_dir=sys.argv[1],
  )
"""


def start(tmp_path, checkpoint_every):
  return subprocess.Popen(
    [
      sys.executable,
      '-c',
      textwrap.dedent(SCRIPT),
      str(tmp_path / 'run'),
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
  whole = train(
    tmp_path / 'whole',
    num_steps=stopped_at,
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


def test_two_jobs_do_not_train_in_one_directory(tmp_path):
  train(tmp_path, num_steps=2)
  path = tmp_path / 'train_log.jsonl'
  before = path.read_bytes()
  lock = file_locks.FileLock(str(path))
  try:
    with pytest.raises(ValueError, match='written by process .* MODEL_DIR'):
      train(tmp_path, num_steps=4)
  finally:
    lock.release()
  assert path.read_bytes() == before
  assert train(tmp_path, num_steps=4).step == 4
  assert not path.with_name('train_log.jsonl.lock').exists()


def test_a_run_is_not_written_to_a_bucket(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='gs://b/run is no local path'):
    train('gs://b/run')
  assert list(tmp_path.iterdir()) == []


def test_other_rows_on_a_restart_are_counted(tmp_path, capsys):
  def rows(*hashes):
    return lambda: records.TrainingRows(
      np.array(hashes, np.uint64), np.zeros(0, np.uint64)
    )

  train(tmp_path, num_steps=2, seen_rows=rows(1, 2, 3))
  train(tmp_path, num_steps=3, seen_rows=rows(3, 2, 1, 1))
  assert 'warning' not in capsys.readouterr().err
  train(tmp_path, num_steps=4, seen_rows=rows(2, 3, 4, 5))
  said = capsys.readouterr().err
  assert 'of 4 inputs 2 are new, and 1 that it has trained on are gone' in said

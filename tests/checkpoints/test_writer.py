import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cases import training_cases

from calm_jax.checkpoints import directories, native

CONFIG = training_cases.CONFIG
PARAMS = training_cases.random_params(CONFIG)


@pytest.fixture
def run(tmp_path):
  """A run directory with one good checkpoint."""
  native.save(tmp_path, 3, params=PARAMS, config=CONFIG)
  return tmp_path


@pytest.fixture
def gate(monkeypatch):
  """Holds writes back until it is set."""
  opened = threading.Event()
  finalize = ocp.CompositeCheckpointHandler.finalize

  def wait_and_finalize(self, *args, **kwargs):
    assert opened.wait(60)
    return finalize(self, *args, **kwargs)

  monkeypatch.setattr(
    ocp.CompositeCheckpointHandler, 'finalize', wait_and_finalize
  )
  yield opened
  opened.set()


def fail_to_write(monkeypatch, error):
  """Makes every write fail in the background, after it has begun."""

  def finalize(self, directory):
    raise error

  monkeypatch.setattr(ocp.CompositeCheckpointHandler, 'finalize', finalize)


def save(writer, run, step, params=PARAMS, **arguments):
  return writer.save(run, step, params=params, config=CONFIG, **arguments)


def wait_for_failure(writer):
  """Polls as a training loop does, until an error comes up."""
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    writer.poll()
    time.sleep(0.01)


def test_training_goes_on_while_a_checkpoint_is_written(run, gate):
  step = jax.jit(
    lambda params: jax.tree.map(lambda leaf: 2 * leaf, params), donate_argnums=0
  )
  params = jax.tree.map(jnp.copy, PARAMS)
  with native.CheckpointWriter() as writer:
    save(writer, run, 6, params, max_to_keep=1)
    # The arrays are given away before the files are there.
    jax.block_until_ready(step(step(params)))
    writer.poll()
    assert directories.steps(run) == [3], (
      'the old one, until the new one is there'
    )
    gate.set()
  assert directories.steps(run) == [6]
  jax.tree.map(
    np.testing.assert_array_equal, native.load_params(run).params, PARAMS
  )


def test_polling_notices_the_commit_and_removes_what_is_old(run):
  with native.CheckpointWriter() as writer:
    save(writer, run, 6, max_to_keep=1)
    deadline = time.monotonic() + 60
    while directories.steps(run) != [6]:
      writer.poll()
      assert time.monotonic() < deadline
  assert sorted(os.listdir(run)) == ['checkpoint_6']


def test_checkpoints_are_committed_in_order(run, gate):
  best = run / 'best'
  with native.CheckpointWriter() as writer:
    save(writer, best, 6, max_to_keep=1)
    threading.Timer(0.2, gate.set).start()
    save(writer, run, 6)
    assert directories.steps(best) == [6], 'the first, before the second begins'
  assert directories.steps(run) == [3, 6]


def test_a_full_disk_is_named_and_the_last_good_one_is_kept(
  run, monkeypatch, capfd
):
  error = OSError(28, 'No space left on device')
  fail_to_write(monkeypatch, error)
  with native.CheckpointWriter() as writer:
    save(writer, run, 6, max_to_keep=1)
    with pytest.raises(native.SaveError) as caught:
      wait_for_failure(writer)
    message = str(caught.value)
    for part in ('checkpoint_6', 'disk is full', str(run / 'checkpoint_3')):
      assert part in message
    assert '\n' not in message
    assert caught.value.__cause__ is error
    assert os.listdir(run) == ['checkpoint_3'], 'the half is gone'
    native.load_params(run)
    # Once there is space, the same writer goes on.
    monkeypatch.undo()
    save(writer, run, 6, max_to_keep=1)
  assert directories.steps(run) == [6]
  assert capfd.readouterr() == ('', '')


def test_other_causes_are_named_too(run, monkeypatch):
  fail_to_write(monkeypatch, PermissionError(13, 'Permission denied', 'a file'))
  with pytest.raises(
    native.SaveError, match='checkpoint_6.*PermissionError.*13'
  ):
    native.save(run, 6, params=PARAMS, config=CONFIG)
  (run / 'notes.txt').touch()
  with pytest.raises(native.SaveError, match='notes.txt'):
    native.save(run / 'notes.txt', 6, params=PARAMS, config=CONFIG)


def test_a_failed_replacement_leaves_what_was_there(run, monkeypatch):
  doubled = jax.tree.map(lambda leaf: 2 * leaf, PARAMS)
  fail_to_write(monkeypatch, OSError(28, 'No space left on device'))
  with pytest.raises(native.SaveError, match='no other checkpoint'):
    native.save(run, 3, params=doubled, config=CONFIG)
  jax.tree.map(
    np.testing.assert_array_equal, native.load_params(run).params, PARAMS
  )
  assert os.listdir(run) == ['checkpoint_3']


def test_the_first_error_is_the_one_that_is_heard(run, monkeypatch):
  fail_to_write(monkeypatch, OSError(28, 'No space left on device'))
  with pytest.raises(KeyError, match='first'):  # noqa: PT012, of a whole block
    with native.CheckpointWriter() as writer:
      save(writer, run, 6)
      raise KeyError('first')


def test_what_kills_leave_is_cleaned_up(run):
  good = run / 'checkpoint_3'
  best = run / 'best'
  shutil.copytree(good, run / 'checkpoint_6.orbax-checkpoint-tmp')
  shutil.copytree(good, best / 'checkpoint_5.orbax-checkpoint-tmp-17')
  shutil.copytree(good, run / 'checkpoint_2.removed')
  # Killed between setting the old one aside and committing the new one, ...
  shutil.copytree(good, best / 'checkpoint_4.replaced')
  # ... or after that.
  shutil.copytree(good, run / 'checkpoint_3.replaced')
  # Not ours to remove.
  shutil.copytree(good, run / 'checkpoint_3.copy')
  (run / 'checkpoint_notes.txt').touch()
  directories.clean_up(run)
  assert sorted(os.listdir(run)) == [
    'best',
    'checkpoint_3',
    'checkpoint_3.copy',
    'checkpoint_notes.txt',
  ]
  assert os.listdir(best) == ['checkpoint_4']
  assert directories.steps(run) == [3] and directories.steps(best) == [4]
  directories.clean_up(run / 'nowhere')


def test_the_other_checkpoints_of_a_run_are_found_from_either_place(run):
  shutil.copytree(run / 'checkpoint_3', run / 'best' / 'checkpoint_2')
  shutil.copytree(run / 'checkpoint_3', run / 'checkpoint_5')
  found = directories.complete_beside(run / 'checkpoint_5')
  assert found == [str(run / 'checkpoint_3'), str(run / 'best/checkpoint_2')]
  found = directories.complete_beside(run / 'best' / 'checkpoint_2')
  assert found == [str(run / 'checkpoint_5'), str(run / 'checkpoint_3')]

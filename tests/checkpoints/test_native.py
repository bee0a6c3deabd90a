import dataclasses
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import training_cases

from calm_jax import model
from calm_jax.checkpoints import directories, native

CONFIG = training_cases.CONFIG
PARAMS = training_cases.random_params(CONFIG)
CONTEXT = {'vocabulary_fingerprint': 'abc', 'vocabulary_file': 'v.model'}


def assert_equal(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def optimizer_state(seed):
  """A state of tuples, named tuples and empty ones, every leaf different."""
  state = optax.adamw(1e-3).init(PARAMS)
  leaves, structure = jax.tree.flatten(state)
  random = np.random.default_rng(seed)
  return structure.unflatten(
    [
      jnp.asarray(random.normal(size=leaf.shape) * 100, leaf.dtype)
      for leaf in leaves
    ]
  )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run directory with two checkpoints of parameters."""
  run = tmp_path_factory.mktemp('run')
  for step in (3, 12):
    native.save(run, step, params=PARAMS, config=CONFIG, context=CONTEXT)
  return run


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def test_a_run_or_a_checkpoint_can_be_loaded(saved):
  for path in (saved, saved / 'checkpoint_12', str(saved) + '/'):
    params, config, metadata = native.load_params(path)
    assert_equal(params, PARAMS)
    assert config == CONFIG
    assert metadata['step'] == 12 and metadata['context'] == CONTEXT
  assert native.load_params(saved / 'checkpoint_3').metadata['step'] == 3
  assert directories.latest_step(saved) == 12
  assert directories.best_step(saved) is None


def test_the_best_checkpoint_is_preferred(copy):
  native.save(copy / 'best', 3, params=PARAMS, config=CONFIG)
  assert directories.best_step(copy) == 3
  assert native.load_params(copy).metadata['step'] == 3


def test_relative_paths_work(saved, monkeypatch):
  monkeypatch.chdir(saved.parent)
  assert_equal(native.load_params(saved.name).params, PARAMS)


def test_a_whole_training_state_comes_back(tmp_path):
  rest = {
    'step': jnp.int32(7),
    'rng': jax.random.key_data(jax.random.key(1)),
    'optimizer': optimizer_state(0),
  }
  path = native.save(
    tmp_path, 7, params=PARAMS, config=CONFIG, train_state=rest
  )
  shapes = jax.eval_shape(lambda: (PARAMS, rest))
  params, restored = native.restore_train_state(path, *shapes)
  assert_equal(params, PARAMS)
  assert_equal(restored, rest)
  assert jax.tree.structure(restored) == jax.tree.structure(rest)
  with pytest.raises(ValueError, match='another optimizer'):
    native.restore_train_state(
      path, PARAMS, {**rest, 'optimizer': optax.sgd(1.0).init(PARAMS)}
    )


def test_old_checkpoints_go_and_the_new_one_stays(copy):
  native.save(copy, 5, params=PARAMS, config=CONFIG, max_to_keep=2)
  assert directories.steps(copy) == [5, 12]
  native.save(copy, 4, params=PARAMS, config=CONFIG, max_to_keep=1)
  assert directories.steps(copy) == [4]
  with pytest.raises(ValueError, match='max_to_keep'):
    native.save(copy, 6, params=PARAMS, config=CONFIG, max_to_keep=0)


def test_a_step_can_be_saved_again(copy):
  doubled = jax.tree.map(lambda leaf: 2 * leaf, PARAMS)
  native.save(copy, 12, params=doubled, config=CONFIG)
  assert_equal(native.load_params(copy).params, doubled)


def test_nothing_is_printed_or_logged(saved, capfd, caplog):
  with caplog.at_level(logging.INFO):
    native.load_params(saved)
  assert capfd.readouterr() == ('', '') and not caplog.records


def test_a_missing_path_says_what_is_there(saved, tmp_path):
  with pytest.raises(FileNotFoundError, match="holds.*'checkpoint_12'"):
    native.load_params(saved / 'checkpoint_13')
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(FileNotFoundError, match='notes.txt'):
    native.load_params(tmp_path)


def test_a_half_written_checkpoint_is_not_picked_up(copy):
  # What a kill during a save leaves: no commit time yet, or a temporary name.
  shutil.copytree(copy / 'checkpoint_12', copy / 'checkpoint_20')
  (copy / 'checkpoint_20' / '_CHECKPOINT_METADATA').unlink()
  shutil.copytree(
    copy / 'checkpoint_12', copy / 'checkpoint_21.orbax-checkpoint-tmp-1'
  )
  assert directories.latest_step(copy) == 12
  assert native.load_params(copy).metadata['step'] == 12
  with pytest.raises(ValueError, match='never completed.*checkpoint_12'):
    native.load_params(copy / 'checkpoint_20')


def files_of(path):
  return [
    os.path.join(folder, name)
    for folder, _, names in os.walk(path)
    for name in names
  ]


# Reads that fail leave no others behind that nobody waits for.
@pytest.mark.slow
@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('damage', ['delete', 'cut', 'flip'])
def test_damage_is_noticed_or_harmless(copy, damage):
  """Whatever happens to any file: the true parameters or a clear error."""
  path = copy / 'checkpoint_12'
  errors = 0
  for name in files_of(path):
    with open(name, 'rb') as file:
      content = file.read()
    if damage == 'delete':
      os.unlink(name)
    else:
      middle = len(content) // 2
      with open(name, 'wb') as file:
        file.write(content[:middle])
        if damage == 'flip' and content:
          file.write(bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    try:
      assert_equal(native.load_params(path).params, PARAMS)
    except ValueError as error:
      errors += 1
      assert 'checkpoint_12' in str(error) and 'damaged' in str(error)
      assert str(copy / 'checkpoint_3') in str(error), 'the remedy'
    with open(name, 'wb') as file:
      file.write(content)
  assert errors >= 3


def test_another_configuration_is_refused_by_name(saved):
  with pytest.raises(ValueError, match='embed_dim: expected 32, found 16'):
    native.load_params(saved, dataclasses.replace(CONFIG, embed_dim=32))
  wanted = dataclasses.replace(CONFIG, dtype='bfloat16', dropout_rate=0.0)
  assert native.load_params(saved, wanted).config == wanted


def test_shapes_that_do_not_fit_are_named(saved):
  other = dataclasses.replace(CONFIG, mlp_dim=8)
  expected = jax.eval_shape(lambda: model.init_params(other, jax.random.key(0)))
  with pytest.raises(
    ValueError, match=r'mlp/wi_0/kernel: expected \(16, 8\), found \(16, 32\)'
  ):
    native.load_params(saved, expect_params=expected)


def test_another_vocabulary_is_refused(saved):
  native.load_params(saved, expect_vocabulary='abc')
  with pytest.raises(ValueError, match='v.model.*abc.*xyz'):
    native.load_params(saved, expect_vocabulary='xyz')

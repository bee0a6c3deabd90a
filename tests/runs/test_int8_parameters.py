"""A run in 8 bits: made once, kept beside it, and read without the floats."""

import dataclasses
import logging
import os
import shutil
import tarfile

import jax
import numpy as np
import pytest
from tools.paths import GOLDEN

from calm_jax import checkpoints, decoding, model, quantisation, runs
from calm_jax.quantisation import Int8Weights

OTHER = Int8Weights(encoder=True)


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stored')
  with tarfile.open(GOLDEN / 'run_0_1_0.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  return folder / 'run'


@pytest.fixture
def run_dir(stored, tmp_path):
  return shutil.copytree(stored, tmp_path / 'run')


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def quantised(run, weights):
  return model.as_layered_decoder(run.config).quantise(run.params, weights)


def never(*arguments, **options):
  raise AssertionError(f'called with {arguments} and {options}')


@pytest.mark.parametrize(
  'weights', [Int8Weights(), pytest.param(OTHER, marks=pytest.mark.slow)]
)
def test_they_are_made_once(run_dir, weights, monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  run = runs.load_run(run_dir)
  wanted = quantised(run, weights)
  assert_same(runs.int8_params(run, weights), wanted)
  path = checkpoints.int8_path(run_dir, weights)
  assert f'kept matrices in 8 bits in {path}' in caplog.text
  monkeypatch.setattr(runs.int8_parameters.model, 'as_layered_decoder', never)
  assert_same(runs.int8_params(run, weights), wanted)
  monkeypatch.undo()
  bound = decoding.bind(
    model.as_layered_decoder(run.config), wanted, weights=weights
  )
  assert bound.weights == weights


def test_a_run_is_loaded_without_its_floats(run_dir, monkeypatch):
  run = runs.load_run(run_dir)
  first = runs.load_int8(run_dir)
  monkeypatch.setattr(runs.loading.checkpoints, 'load_params', never)
  again = runs.load_int8(run_dir)
  assert again.weights == first.weights == Int8Weights()
  wanted = quantised(run, Int8Weights())
  for found in (first, again):
    assert_same(found.params, wanted)
    assert_same(runs.int8_params(found, 'int8'), wanted)
    # Certificates name the float parameters.
    assert found.context() == run.context()
    assert found.checkpoint == run.checkpoint
    assert found.tokenizer.fingerprint == run.tokenizer.fingerprint
    with pytest.raises(ValueError, match='load it with runs.load_run'):
      runs.int8_params(found, OTHER)
    with pytest.raises(ValueError, match='which do not become float'):
      runs.int8_params(found, None)


@pytest.mark.slow
def test_both_ways_decode_alike(run_dir):
  decoder = model.as_layered_decoder(runs.load_run(run_dir).config)
  inputs = np.random.default_rng(0).integers(2, decoder.vocab_size, (2, 5))
  results = []
  for run in (runs.load_run(run_dir), runs.load_int8(run_dir)):
    bound = decoding.bind(decoder, run.params, weights='int8')
    results.append(decoding.generate(bound, inputs, max_length=5))
  np.testing.assert_array_equal(results[0].tokens, results[1].tokens)
  np.testing.assert_array_equal(results[0].scores, results[1].scores)


def test_float_weights_are_the_run_itself(run_dir):
  run = runs.load_run(run_dir)
  assert runs.int8_params(run, 'float') is run.params
  with pytest.raises(ValueError, match="weights is 'float': load these with"):
    runs.load_int8(run_dir, 'float')
  assert not (run_dir / 'int8').exists()


@pytest.mark.parametrize('load', [True, False], ids=['load', 'params'])
def test_a_file_that_does_not_fit_is_made_again(
  run_dir, monkeypatch, caplog, load
):
  with monkeypatch.context() as patch:
    patch.setattr(quantisation, 'RULE_VERSION', 0)
    runs.load_int8(run_dir)
  run = runs.load_run(run_dir)
  if load:
    params = runs.load_int8(run_dir).params
  else:
    params = runs.int8_params(run)
  assert_same(params, quantised(run, Int8Weights()))
  assert 'made by the rule of rounding 0, not 1' in caplog.text
  caplog.clear()
  assert_same(checkpoints.load_int8(run_dir).params, params)
  runs.load_int8(run_dir)
  assert not caplog.text


def test_a_directory_that_cannot_be_written_works(run_dir, monkeypatch, caplog):
  # Where tests run as root, permissions keep nobody out.
  def refuse(path, **options):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(os, 'makedirs', refuse)
  run = runs.load_int8(run_dir)
  assert_same(run.params, quantised(runs.load_run(run_dir), Int8Weights()))
  assert 'are not kept beside' in caplog.text
  assert (
    'Permission denied' in caplog.text and 'Make it writable' in caplog.text
  )
  assert not (run_dir / 'int8').exists()


def test_other_parameters_are_not_kept_as_the_checkpoint_s(run_dir):
  run = runs.load_run(run_dir)
  kept = runs.int8_params(run)
  doubled = jax.tree.map(lambda leaf: 2 * leaf, run.params)
  other = dataclasses.replace(run, params=doubled)
  assert_same(runs.int8_params(other), quantised(other, Int8Weights()))
  assert_same(checkpoints.load_int8(run_dir).params, kept)


def test_parameters_that_are_not_finite_are_refused(run_dir):
  run = runs.load_run(run_dir)
  broken = jax.tree.map(lambda leaf: leaf * np.nan, run.params)
  with pytest.raises(ValueError, match='holds numbers that are not finite'):
    runs.int8_params(dataclasses.replace(run, params=broken))

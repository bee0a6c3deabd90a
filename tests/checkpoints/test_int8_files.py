"""Parameters in 8 bits beside a checkpoint: read as written, or refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, model, quantisation
from calm_jax.checkpoints import safetensors_files, stored_tensors
from calm_jax.checkpoints.storage import Folder
from calm_jax.quantisation import Int8Weights

UNTIED = training_cases.CONFIG
TIED = dataclasses.replace(
  UNTIED, tied_embeddings=True, mlp_activations=('relu',)
)
WHOLE = Int8Weights(encoder=True, keep=(r'decoder/.*/query',))
MATRIX = 'decoder/layers_1/mlp/wo/int8'


def quantised(config, params, weights):
  return model.as_layered_decoder(config).quantise(params, weights)


def make_run(folder, config=UNTIED, seed=5, step=3):
  params = model.init_params(config, jax.random.key(seed))
  checkpoints.save(folder, step, params=params, config=config, context={})
  return params, checkpoints.parameter_fingerprint(params)


def keep(folder, config=UNTIED, weights=None, seed=5):
  """Makes a run with a file beside it; returns the tree that is in it."""
  weights = weights or Int8Weights()
  params, fingerprint = make_run(folder, config, seed)
  tree = quantised(config, params, weights)
  checkpoints.save_int8(folder, tree, weights, fingerprint=fingerprint)
  return tree


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  keep(folder)
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'copy')


@pytest.mark.parametrize('config', [UNTIED, TIED], ids=['untied', 'tied'])
@pytest.mark.parametrize('weights', [Int8Weights(), WHOLE])
def test_what_is_read_is_what_was_written(tmp_path, config, weights):
  tree = keep(tmp_path, config, weights)
  found, found_config, metadata = checkpoints.load_int8(tmp_path, weights)
  assert jax.tree.structure(found) == jax.tree.structure(tree)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(tree), strict=True
  ):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
  float_params, _, wanted = checkpoints.load_params(tmp_path)
  assert (found_config, metadata) == (config, wanted)
  made_of = checkpoints.parameter_fingerprint(float_params)
  assert metadata['parameter_fingerprint'] == made_of


def test_files_of_several_weights_and_steps_lie_side_by_side(tmp_path):
  keep(tmp_path)
  params, fingerprint = make_run(tmp_path, seed=6, step=8)
  for weights in (Int8Weights(), WHOLE):
    tree = quantised(UNTIED, params, weights)
    checkpoints.save_int8(tmp_path, tree, weights, fingerprint=fingerprint)
  # And no half-written one.
  names = sorted(file.name for file in (tmp_path / 'int8').iterdir())
  assert len(names) == 3 and len({*names}) == 3
  assert names[0] == 'checkpoint_3.safetensors'
  assert all(name.startswith('checkpoint_8') for name in names[1:])
  for place, step in ((tmp_path, 8), (tmp_path / 'checkpoint_3', 3)):
    assert checkpoints.load_int8(place).metadata['step'] == step


def test_matrices_take_a_quarter(saved):
  path = checkpoints.int8_path(saved)
  assert path == str(saved / 'int8' / 'checkpoint_3.safetensors')
  tensors, _ = safetensors_files.read_with_metadata(
    Folder.open(saved / 'int8'), 'checkpoint_3.safetensors'
  )
  params = checkpoints.load_params(saved).params
  kernel = params['decoder']['layers_1']['mlp']['wo']['kernel']
  assert 4 * tensors[f'{MATRIX}/values'].nbytes == kernel.nbytes


def rewrite(run, change=None, **about):
  """Writes the file anew, with other arrays or another header."""
  folder, name = Folder.open(run / 'int8'), 'checkpoint_3.safetensors'
  tensors, header = safetensors_files.read_with_metadata(folder, name)
  arrays = {name: tensor.read() for name, tensor in tensors.items()}
  if change is not None:
    change(arrays)
  header['calm_jax.int8'] = json.dumps(
    {**json.loads(header['calm_jax.int8']), **about}
  )
  safetensors_files.write_file(
    run / 'int8' / name,
    {n: stored_tensors.in_memory(n, array) for n, array in arrays.items()},
    header,
  )


@pytest.mark.parametrize(
  'about, words',
  [
    (
      {'parameter_fingerprint': 'abc'},
      'checkpoint_3.safetensors was made of the parameters abc, not ',
    ),
    (
      {'weights': WHOLE.describe()},
      "made for the weights {.*'encoder': True.*}, not {'type': 'int8'}",
    ),
    ({'rule': 0}, 'made by the rule of rounding 0, not 1; .* makes it again'),
  ],
)
def test_files_of_something_else_are_refused(copy, about, words):
  rewrite(copy)
  checkpoints.load_int8(copy)
  rewrite(copy, **about)
  with pytest.raises(ValueError, match=words):
    checkpoints.load_int8(copy)


def put(name, change):
  def alter(arrays):
    arrays[name] = change(arrays[name].copy())

  return alter


def fill(value):
  def change(scales):
    scales[2] = value
    return scales

  return change


def swap(arrays):
  """Two matrices of one shape, each with the other's scales."""
  other = 'decoder/layers_0/mlp/wo/int8/scales'
  mine = f'{MATRIX}/scales'
  arrays[mine], arrays[other] = arrays[other], arrays[mine]


@pytest.mark.parametrize(
  'change, words',
  [
    (
      put(f'{MATRIX}/scales', lambda scales: scales[:-1]),
      rf'{MATRIX}/scales: expected \(16,\), found \(15,\)',
    ),
    (
      lambda arrays: arrays.pop(f'{MATRIX}/values'),
      rf'{MATRIX}/values: expected \(16, 32\), found nothing',
    ),
    (
      lambda arrays: arrays.pop('decoder/decoder_norm/scale'),
      r'decoder/decoder_norm/scale: expected \(16,\), found nothing',
    ),
    (put(f'{MATRIX}/scales', fill(0)), f'{MATRIX} has 1 scales .* as 0.0'),
    (put(f'{MATRIX}/scales', fill(-1)), f'{MATRIX} has 1 scales .* as -1.0'),
    (put(f'{MATRIX}/scales', fill(np.nan)), f'{MATRIX} has 1 scales .* as nan'),
    (put(f'{MATRIX}/scales', fill(np.inf)), f'{MATRIX} has 1 scales .* as inf'),
    (
      put(f'{MATRIX}/scales', lambda scales: scales.astype(np.float16)),
      r'scales float16 \[16\], which do not fit each other',
    ),
    (
      put(f'{MATRIX}/values', lambda values: values.astype(np.float32)),
      f'holds {MATRIX}/values as float32, not int8',
    ),
    (
      put('decoder/decoder_norm/scale', lambda scale: scale.astype(np.int8)),
      'holds decoder/decoder_norm/scale as int8, not float32',
    ),
    (swap, 'was altered: what it holds has the fingerprint'),
    (
      put(f'{MATRIX}/values', lambda values: values[::-1]),
      'was altered: what it holds has the fingerprint',
    ),
  ],
)
def test_scales_and_matrices_that_do_not_fit_are_refused(copy, change, words):
  rewrite(copy, change)
  with pytest.raises(ValueError, match=words):
    checkpoints.load_int8(copy)


def test_cut_and_foreign_files_are_refused(copy):
  path = copy / 'int8' / 'checkpoint_3.safetensors'
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  with pytest.raises(ValueError, match='cannot be read: .* Get it again'):
    checkpoints.load_int8(copy)
  safetensors_files.write_file(path, {})
  with pytest.raises(ValueError, match='does not say what it was made of'):
    checkpoints.load_int8(copy)
  path.unlink()
  with pytest.raises(FileNotFoundError, match='int8_params makes it'):
    checkpoints.load_int8(copy)
  with pytest.raises(FileNotFoundError, match='no checkpoint at'):
    checkpoints.load_int8(copy / 'int8')


def test_the_checkpoint_that_was_trained_on_has_none(saved, copy):
  """The same step, trained again: the file beside it is not taken."""
  shutil.rmtree(copy / 'checkpoint_3')
  make_run(copy, seed=9)
  with pytest.raises(ValueError, match='was made of the parameters'):
    checkpoints.load_int8(copy)
  found = checkpoints.load_params(saved)
  with pytest.raises(ValueError, match='keep them beside the checkpoint that'):
    checkpoints.save_int8(
      copy,
      quantised(UNTIED, found.params, Int8Weights()),
      'int8',
      fingerprint=found.metadata['parameter_fingerprint'],
    )
  with pytest.raises(ValueError, match="weights is 'float'"):
    checkpoints.load_int8(copy, 'float')


def test_a_write_that_fails_leaves_what_was_there(copy, monkeypatch):
  found = checkpoints.load_int8(copy)

  def fail(*arguments):
    del arguments
    raise OSError('No space left on device')

  monkeypatch.setattr(checkpoints.int8_files.os, 'replace', fail)
  with pytest.raises(OSError, match='No space left'):
    checkpoints.save_int8(
      copy,
      found.params,
      'int8',
      fingerprint=found.metadata['parameter_fingerprint'],
    )
  assert len(list((copy / 'int8').iterdir())) == 1
  checkpoints.load_int8(copy)


def test_only_matrices_in_8_bits_may_be_integers():
  with pytest.raises(ValueError, match='ids is int8, and no matrix in 8 bits'):
    quantisation.check_stored('here', {'ids': np.ones(3, np.int8)})
  with pytest.raises(ValueError, match='the matrix a has no scales'):
    quantisation.check_stored('here', {'a/values': np.ones((3, 2), np.int8)})

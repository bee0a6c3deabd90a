"""Programs with weights in 8 bits: outputs, sizes, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, deployment, exits, records
from calm_jax.checkpoints import safetensors_files, stored_tensors
from calm_jax.checkpoints.storage import Folder
from calm_jax.examples import numpy_client
from calm_jax.quantisation import Int8Weights

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

SPEC = deployment.ProgramSpec(
  source_length=5,
  max_length=6,
  policy=decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
  ),
)
KEEP = Int8Weights(encoder=True, keep=(r'.*/attention/query',))
MATRIX = 'layers/mlp/wo/int8'
FILE = 'parameters.safetensors'


def bound_with(weights):
  return decoding.bind(
    cases.decoder(), cases.params(), depth_loop=cases.WHILE, weights=weights
  )


def export(path, weights):
  deployment.export_artifact(bound_with(weights), path, SPEC)
  return path


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """Artifacts of one model, by what is known of their weights."""
  folder = tmp_path_factory.mktemp('artifacts')
  return {
    'float': export(folder / 'float', None),
    'int8': export(folder / 'int8', 'int8'),
    'kept': export(folder / 'kept', KEEP),
  }


@pytest.mark.parametrize('name, weights', [('int8', 'int8'), ('kept', KEEP)])
@pytest.mark.parametrize(
  'batch_size', [1, pytest.param(3, marks=pytest.mark.slow)]
)
def test_the_program_says_what_the_bound_decoder_says(
  paths, name, weights, batch_size
):
  exported, bound = deployment.load_artifact(paths[name]), bound_with(weights)
  random = np.random.default_rng(batch_size)
  inputs = random.integers(2, cases.V, (batch_size, 5))
  for threshold in (1.0, 0.3, 0.1):
    found = exported(inputs, threshold=threshold)
    wanted = decoding.generate(
      bound,
      inputs,
      policy=decoding.with_setting(SPEC.policy, threshold),
      max_length=6,
    )
    for field in ('tokens', 'exit_layers', 'lengths'):
      np.testing.assert_array_equal(found[field], getattr(wanted, field))
    np.testing.assert_allclose(found['scores'], wanted.scores, rtol=1e-5)


def test_it_is_another_model_than_the_float_one(paths):
  """So that the comparison above says something."""
  inputs = np.random.default_rng(0).integers(2, cases.V, (3, 5))
  one, other = (
    deployment.load_artifact(paths[name])(inputs, threshold=1.0)['scores']
    for name in ('float', 'int8')
  )
  assert abs(one - other).max() > 1e-3


def test_the_manifest_says_which_weights(paths):
  manifests = {
    name: records.read_export_manifest(path) for name, path in paths.items()
  }
  assert manifests['float'].weights == 'float'
  assert manifests['int8'].weights == {'type': 'int8'}
  assert manifests['kept'].weights == KEEP.describe()
  made, found = manifests['int8'].decoding, manifests['float'].decoding
  assert any(
    line.startswith("weights: certified for {'type': 'int8'}, got 'float'")
    for line in made.differences(found).breaking
  )
  exported = deployment.load_artifact(paths['int8'])
  with pytest.raises(ValueError, match='the full model with weights in 8 bits'):
    exported([[2, 3]])


def test_a_matrix_takes_a_quarter_and_a_scale_per_channel(paths):
  def read(name):
    return safetensors_files.read_file(
      Folder.open(paths[name]), FILE, stored_tensors.WITH_INT8
    )

  one, other = read('float'), read('int8')
  for name, tensor in other.items():
    path = name.removesuffix('/int8/values')
    if path != name:
      scales = other[f'{path}/int8/scales']
      assert 4 * tensor.nbytes == one[f'{path}/kernel'].nbytes
      assert scales.nbytes == 4 * tensor.nbytes // tensor.shape[-1]
  assert 4 * other['output/values'].nbytes == one['output'].nbytes
  same = one.keys() & other.keys()
  assert 'token_embedder/embedding' in same
  assert all(one[name].nbytes == other[name].nbytes for name in same)
  sizes = {
    name: records.read_export_manifest(path).parameters.num_bytes
    for name, path in paths.items()
  }
  assert sizes['int8'] < sizes['float']


def test_a_client_without_calm_jax_reads_it(paths):
  rows = [[2, 3, 4, 5, 6], [7, 8]]
  found = numpy_client.Client(paths['int8']).decode(rows, 0.3)
  inputs = np.array([rows[0], [7, 8, 0, 0, 0]])
  wanted = deployment.load_artifact(paths['int8'])(inputs, threshold=0.3)
  np.testing.assert_array_equal(found['tokens'], wanted['tokens'])


def test_a_manifest_that_says_nothing_of_weights_is_of_float_ones(
  paths, tmp_path
):
  copy = shutil.copytree(paths['float'], tmp_path / 'copy')
  content = json.loads((copy / 'manifest.json').read_text())
  for name in ('checksum', 'format', 'weights'):
    del content[name]
  manifest = records.from_jsonable(records.ExportManifest, content)
  assert manifest.weights == 'float'
  records.write_export_manifest(copy, manifest)
  assert deployment.load_artifact(copy).manifest.weights == 'float'


def altered(path, copy, change, **facts):
  """Copies an artifact with other arrays, under a manifest made for them."""
  shutil.copytree(path, copy)
  manifest = records.read_export_manifest(copy)
  tensors = safetensors_files.read_file(
    Folder.open(copy), FILE, stored_tensors.WITH_INT8
  )
  arrays = {name: tensor.read() for name, tensor in tensors.items()}
  change(arrays)
  safetensors_files.write_file(
    copy / FILE,
    {n: stored_tensors.in_memory(n, array) for n, array in arrays.items()},
  )
  facts['parameters'] = records.describe_file(copy / FILE)
  records.write_export_manifest(copy, dataclasses.replace(manifest, **facts))
  return copy


def put(name, change):
  def alter(arrays):
    arrays[name] = change(arrays[name])

  return alter


def _zero(scales):
  scales[1, 3] = 0.0
  return scales


def _nan(scales):
  scales[2, 5] = np.nan
  return scales


@pytest.mark.parametrize(
  'change, words',
  [
    (
      put(f'{MATRIX}/values', lambda values: values.astype(np.float32)),
      rf'{MATRIX}/values: the program takes int8 \[4, 16, 24\], the file holds '
      r'float32 \[4, 16, 24\]; .* export again',
    ),
    (
      put('decoder_norm/scale', lambda values: values.astype(np.int8)),
      r'decoder_norm/scale: the program takes float32 \[16\], .* int8 \[16\]',
    ),
    (
      put(f'{MATRIX}/scales', lambda scales: scales[:, :-1]),
      rf'{MATRIX}/scales: the program takes float32 \[4, 16\], .* \[4, 15\]',
    ),
    (
      lambda arrays: arrays.pop(f'{MATRIX}/scales'),
      rf'{MATRIX}/scales: the program takes .*, the file holds nothing',
    ),
    (
      put(f'{MATRIX}/scales', _zero),
      f'the matrix {MATRIX} has 1 scales that are not finite numbers above 0',
    ),
    (
      put(f'{MATRIX}/scales', _nan),
      f'the matrix {MATRIX} has 1 scales .* such as nan',
    ),
  ],
)
def test_scales_that_do_not_fit_are_refused(paths, tmp_path, change, words):
  copy = altered(paths['int8'], tmp_path / 'copy', change)
  with pytest.raises(ValueError, match=words):
    deployment.load_artifact(copy)


def test_files_of_float_and_int8_artifacts_do_not_mix(paths, tmp_path):
  def nothing(arrays):
    del arrays

  copy = altered(paths['int8'], tmp_path / 'a', nothing, weights='float')
  with pytest.raises(
    ValueError, match="matrices in 8 bits, and its manifest .* 'float'"
  ):
    deployment.load_artifact(copy)
  copy = altered(
    paths['float'], tmp_path / 'b', nothing, weights={'type': 'int8'}
  )
  with pytest.raises(ValueError, match='holds 0 matrices in 8 bits'):
    deployment.load_artifact(copy)
  deployment.load_artifact(altered(paths['int8'], tmp_path / 'c', nothing))


def test_shapes_are_enough_to_say_what_would_be_written():
  shapes = jax.eval_shape(lambda: bound_with('int8'))
  text = deployment.describe_program(shapes, SPEC)
  assert "weights: {'type': 'int8'}" in text

"""Every format both ways: same bits, blocks, configurations, classifiers."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from cases import checkpoint_cases as cases
from cases import golden_calm
from flax import serialization

from calm_jax import checkpoints, model
from calm_jax.checkpoints import (
  parameter_names,
  safetensors_files,
  storage,
  stored_tensors,
  zarr_arrays,
)
from calm_jax.checkpoints.orbax_scope import quiet_orbax
from calm_jax.checkpoints.storage import Folder
from calm_jax.checkpoints.stored_tensors import BFLOAT16

FORMS = (
  ('t5x', {}),
  ('t5x', {'stacked': True}),
  ('t5x_orbax', {}),
  ('t5x_orbax', {'stacked': True}),
  ('huggingface', {}),
  ('huggingface', {'max_file_bytes': 700}),
  ('calm_jax', {}),
)


@pytest.fixture(scope='module')
def everywhere(tmp_path_factory):
  """The same v1.1 parameters in every format, each written from the last."""
  folder, paths = tmp_path_factory.mktemp('formats'), []
  source = cases.opened(cases.V1_1)
  for number, (form, options) in enumerate(FORMS):
    target = checkpoints.Target(format=form, **options)
    path = checkpoints.convert(source, folder / str(number), target).path
    paths.append(path)
    source = checkpoints.open_checkpoint(path)
  return paths


def test_a_chain_through_all_formats_keeps_every_bit(everywhere):
  expected = cases.arrays(cases.V1_1)
  for (form, _), path in zip(FORMS, everywhere, strict=True):
    found = checkpoints.open_checkpoint(path)
    assert found.format == form
    assert found.config == cases.V1_1
    # Hugging Face's folders do not say the step, so it is lost from there on.
    assert found.step == (7 if form.startswith('t5x') else 0)
    cases.assert_same_bits(found.tensors, expected)


def test_blocks_are_the_parts_of_the_whole(everywhere):
  expected = cases.arrays(cases.V1_1)
  for path in everywhere:
    for name, tensor in checkpoints.open_checkpoint(path).tensors.items():
      index = tuple(slice(size // 3, size - 1) for size in tensor.shape)
      np.testing.assert_array_equal(tensor.read(index), expected[name][index])


def test_load_gives_the_tree_of_the_model(everywhere):
  params, config, about = checkpoints.load(everywhere[1])
  shapes = jax.eval_shape(
    lambda key: model.init_params(cases.V1_1, key), jax.random.key(0)
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  assert config == cases.V1_1
  assert about['format'] == 't5x' and about['step'] == 7
  # Shapes do not tell activations: the caller does.
  silu = dataclasses.replace(cases.V1_1, mlp_activations=('silu', 'linear'))
  assert checkpoints.load(everywhere[1], silu).config == silu
  with pytest.raises(ValueError, match='mlp_dim: expected 12, found 10'):
    checkpoints.load(everywhere[4], dataclasses.replace(cases.V1_1, mlp_dim=12))
  # The same values read by the loader of our own form.
  own = checkpoints.load_params(everywhere[-1])
  assert checkpoints.parameter_fingerprint(
    own.params
  ) == checkpoints.parameter_fingerprint(params)


def test_urls_go_through_tensorstore(everywhere, monkeypatch):
  expected = cases.arrays(cases.V1_1)
  for path in everywhere:
    found = checkpoints.open_checkpoint(f'file://{path}/')
    cases.assert_same_bits(found.tensors, expected)
  monkeypatch.setattr(storage, '_check_reachable', lambda address: None)
  location = Folder.open('gs://bucket/run/checkpoint_3').location('target.a')
  assert location['driver'] == 'gcs' and location['bucket'] == 'bucket'
  assert location['path'] == 'run/checkpoint_3/target.a/'


def test_directories_of_several(everywhere):
  parent = os.path.dirname(everywhere[0])
  assert checkpoints.open_checkpoint(parent).step == 7
  assert checkpoints.open_checkpoint(everywhere[0] + '/').path == everywhere[0]


def test_t5_1_0_and_mt5(tmp_path):
  expected = cases.arrays(cases.V1_0)
  path = cases.write(cases.V1_0, tmp_path, 't5x', stacked=True)
  assert checkpoints.open_checkpoint(path).config == cases.V1_0
  path = cases.write(cases.V1_0, tmp_path / 'hf', 'huggingface')
  found = checkpoints.open_checkpoint(path)
  assert found.config == cases.V1_0
  cases.assert_same_bits(found.tensors, expected)
  path = cases.write(
    cases.SMALL, tmp_path / 'm', 'huggingface', model_type='mt5'
  )
  fields = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert fields['architectures'] == ['MT5ForConditionalGeneration']
  assert checkpoints.open_checkpoint(path).config == cases.SMALL


def test_other_dtypes(tmp_path):
  """bfloat16 and float16 are kept, float32 is cast where it is asked for."""
  for form, dtype in itertools.product(
    ('t5x', 't5x_orbax', 'huggingface'), (BFLOAT16, np.dtype(np.float16))
  ):
    source = cases.opened(cases.SMALL, dtype=dtype)
    target = checkpoints.Target(format=form)
    folder = tmp_path / f'{form}_{dtype.name}'
    path = checkpoints.convert(source, folder, target).path
    found = checkpoints.open_checkpoint(path)
    cases.assert_same_bits(
      found.tensors, cases.arrays(cases.SMALL, dtype=dtype)
    )
  loaded = jax.tree.leaves(checkpoints.load(path).params)
  assert {leaf.dtype.name for leaf in loaded} == {'float32'}
  path = cases.write(
    cases.SMALL, tmp_path / 'cast', 'huggingface', dtype='bfloat16'
  )
  rounded = {
    name: array.astype(BFLOAT16)
    for name, array in cases.arrays(cases.SMALL).items()
  }
  cases.assert_same_bits(checkpoints.open_checkpoint(path).tensors, rounded)


def test_the_stacked_layout_is_scalable_t5s():
  """Worked out with NumPy: (D, L, H, K), (H, L, K, D), (D, L), (H, L, R)."""
  drawn = cases.arrays(cases.V1_1)
  stacks = parameter_names.to_stacked(
    cases.V1_1, cases.opened(cases.V1_1).tensors
  )

  def layers(name):
    return [drawn[name.format(layer)] for layer in range(3)]

  query = layers('decoder/layers_{}/self_attention/query/kernel')
  out = layers('decoder/layers_{}/encoder_decoder_attention/out/kernel')
  expected = {
    'self_attention/query/kernel': np.stack(
      [q.reshape(8, 3, 4) for q in query], axis=1
    ),
    'encoder_decoder_attention/out/kernel': np.stack(
      [o.reshape(3, 4, 8) for o in out], axis=1
    ),
    'pre_mlp_layer_norm/scale': np.stack(
      layers('decoder/layers_{}/pre_mlp_layer_norm/scale'), axis=1
    ),
    'relpos_bias/rel_embedding': np.stack(
      [drawn['decoder/relpos_bias/rel_embedding']] * 3, axis=1
    ),
  }
  for name, array in expected.items():
    tensor = stacks[f'decoder/decoder/{name}']
    assert tensor.shape == array.shape
    np.testing.assert_array_equal(tensor.read(), array)
    index = tuple(slice(size // 2, size) for size in array.shape)
    np.testing.assert_array_equal(tensor.read(index), array[index])


def test_layers_with_relative_positions_of_their_own_are_refused():
  stacks = parameter_names.to_stacked(
    cases.V1_1, cases.opened(cases.V1_1).tensors
  )
  name = 'decoder/decoder/relpos_bias/rel_embedding'
  values = stacks[name].read()
  values[:, 2] += 1
  stacks[name] = stored_tensors.in_memory(name, values)
  with pytest.raises(ValueError, match=r'rel_embedding .*\[2\] from 0.*umT5'):
    parameter_names.from_stacked(stacks)


def test_safetensors_files_are_those_of_the_library(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  drawn = cases.arrays(cases.SMALL)
  cases.write(cases.SMALL, tmp_path / 'hf', 'huggingface')
  file = tmp_path / 'hf' / 'model.safetensors'
  found = library.load_file(file)
  name = 'decoder.block.0.layer.1.EncDecAttention.o.weight'
  kernel = drawn['decoder/layers_0/encoder_decoder_attention/out/kernel']
  np.testing.assert_array_equal(found[name], kernel.T)
  # And the other way: a file that the library wrote.
  library.save_file(found, file)
  found = checkpoints.open_checkpoint(tmp_path / 'hf')
  cases.assert_same_bits(found.tensors, drawn)


def test_the_library_reads_matrices_in_8_bits_too(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  arrays = {
    # Of an odd number of bytes; wide tensors are written first.
    'wo/values': np.arange(-15, 0, dtype=np.int8).reshape(5, 3),
    'wo/scales': np.linspace(0.1, 0.5, 5, dtype=np.float32),
  }
  tensors = {n: stored_tensors.in_memory(n, a) for n, a in arrays.items()}
  file = tmp_path / 'int8.safetensors'
  about = {'note': 'of tests'}
  safetensors_files.write_file(file, stored_tensors.aligned(tensors), about)
  read, found = safetensors_files.read_with_metadata(
    Folder.open(tmp_path), file.name
  )
  assert list(read) == ['wo/scales', 'wo/values']
  assert found == {'format': 'pt', **about}
  for name, values in library.load_file(file).items():
    np.testing.assert_array_equal(values, arrays[name])
    cases.assert_same_bits({name: read[name]}, {name: values})
  # Where parameters are looked for, integers without scales are none.
  with pytest.raises(ValueError, match='has dtype I8; parameters must be one'):
    safetensors_files.read_file(Folder.open(tmp_path), file.name)


def test_copies_in_older_folders_are_left_aside(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  cases.write(cases.V1_0, tmp_path / 'hf', 'huggingface')
  file = tmp_path / 'hf' / 'model.safetensors'
  tensors = library.load_file(file)
  shared = tensors['shared.weight']
  unused = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias'
  tensors |= {
    'encoder.embed_tokens.weight': shared,
    'decoder.embed_tokens.weight': shared,
    'lm_head.weight': shared,
    f'{unused}.weight': np.zeros((32, 3), np.float32),
  }
  library.save_file(tensors, file)
  found = checkpoints.open_checkpoint(tmp_path / 'hf')
  cases.assert_same_bits(found.tensors, cases.arrays(cases.V1_0))
  assert len(found.notes) == 4
  library.save_file(tensors | {'decoder.embed_tokens.weight': shared + 1}, file)
  with pytest.raises(ValueError, match='embed_tokens.* is not a copy'):
    checkpoints.open_checkpoint(tmp_path / 'hf')
  # Not tied after all, though config.json says so: neither guess is made.
  library.save_file(tensors | {'lm_head.weight': shared + 1}, file)
  with pytest.raises(ValueError, match='scale_decoder_outputs'):
    checkpoints.open_checkpoint(tmp_path / 'hf')


def test_the_release_with_its_classifier(tmp_path):
  """A bare msgpack with everything in it, as flax writes it."""
  params, _ = golden_calm.load()
  path = tmp_path / 'released.checkpoint_5'
  state = {'step': np.int32(5), 'param_states': {'v': np.ones(2)}}
  path.write_bytes(
    serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': params, 'state': state}}
    )
  )
  found = checkpoints.open_checkpoint(path)
  assert found.config == golden_calm.CONFIG and found.step == 5
  weights = params['decoder']['meta_cls']
  np.testing.assert_array_equal(
    found.classifier['kernel'],
    weights['kernel'][:, 1] - weights['kernel'][:, 0],
  )
  assert found.classifier['bias'] == weights['bias'][1] - weights['bias'][0]
  assert any('optimizer' in note for note in found.notes)


def test_old_specifications_of_arrays(tmp_path):
  """A dummy bucket, the path one level higher, bfloat16 as bits (version 2)."""
  source = cases.opened(cases.SMALL, dtype=BFLOAT16)
  target = checkpoints.Target(format='t5x')
  path = checkpoints.convert(source, tmp_path, target).path
  content = serialization.msgpack_restore(
    open(f'{path}/checkpoint', 'rb').read()
  )
  place = content['optimizer']['target']['token_embedder']
  spec = place['embedding']
  name = spec['kvstore']['path']
  array = ts.open(
    {
      'driver': 'zarr',
      'dtype': 'uint16',
      'kvstore': {'driver': 'file', 'path': f'{path}/{name}'},
      'metadata': spec['metadata'],
    },
    create=True,
    delete_existing=True,
  ).result()
  drawn = cases.arrays(cases.SMALL, dtype=BFLOAT16)
  array.write(drawn['token_embedder/embedding'].view(np.uint16)).result()
  spec['kvstore'] = {'driver': 'gcs', 'bucket': 't5x-dummy-bucket'}
  spec['path'] = name
  content['version'] = 2
  with open(f'{path}/checkpoint', 'wb') as file:
    file.write(serialization.msgpack_serialize(content))
  cases.assert_same_bits(checkpoints.open_checkpoint(path).tensors, drawn)


def test_orbax_reads_what_was_written(everywhere):
  with quiet_orbax(), ocp.PyTreeCheckpointer() as reader:
    tree = reader.restore(os.path.join(everywhere[2], 'state'))
  flat = parameter_names.flattened(tree['target'])
  for name, array in cases.arrays(cases.V1_1).items():
    np.testing.assert_array_equal(flat[name], array)
  assert tree['state']['step'] == 7


def test_chunks_divide_and_stay_small():
  assert zarr_arrays.chunk_shape((32128, 4096), 2**24) == [4016, 4096]
  assert zarr_arrays.chunk_shape((6, 10), 60) == [6, 10]
  assert zarr_arrays.chunk_shape((7, 11), 10) == [7, 1]
  assert zarr_arrays.chunk_shape((2, 3), 1) == [1, 1]


PROGRAM = """
import sys
import jax
import numpy as np
from cases import checkpoint_cases as cases
from calm_jax import checkpoints, sharding
from calm_jax.checkpoints import parameter_names, stored_tensors

largest = {}
fetch = stored_tensors.StoredTensor.read
def read(self, index=None):
  block = fetch(self, index)
  largest[self.name] = max(largest.get(self.name, 0), block.size)
  return block
stored_tensors.StoredTensor.read = read

mesh = sharding.make_mesh(data=2, model=2)
expected = cases.arrays(cases.V1_1)
for path in sys.argv[1:]:
  largest.clear()
  params = checkpoints.load(path, mesh=mesh, strategy='fsdp').params
  for name, array in parameter_names.flattened(params).items():
    spec = sharding.partition_spec(name, array.shape, mesh, 'fsdp')
    assert array.sharding.spec == spec, name
    np.testing.assert_array_equal(array, expected[name])
  # (20, 8) over 2 x 2 devices: nobody has read more than its quarter.
  name = [n for n in largest if n in ('shared.weight',
          'token_embedder/embedding')]
  assert largest[name[0]] == 40, largest
print('done')
"""


@pytest.mark.slow
def test_a_mesh_reads_only_the_parts_of_its_devices(everywhere):
  environment = dict(
    os.environ,
    XLA_FLAGS='--xla_force_host_platform_device_count=4',
    PYTHONPATH=os.pathsep.join(sys.path),
  )
  result = subprocess.run(
    [
      sys.executable,
      '-c',
      PROGRAM,
      everywhere[1],
      everywhere[2],
      everywhere[4],
    ],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert result.stdout.strip() == 'done', result.stderr

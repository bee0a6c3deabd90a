"""Damaged, foreign and hostile checkpoints are refused by name."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from cases import checkpoint_cases as cases
from flax import serialization

from calm_jax import checkpoints
from calm_jax.checkpoints import parameter_names, safetensors_files
from calm_jax.checkpoints.stored_tensors import in_memory

EMBEDDING = 'target.token_embedder.embedding'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """One sound checkpoint per format."""
  folder = tmp_path_factory.mktemp('whole')
  return {
    form: cases.write(cases.SMALL, folder / form, form, **options)
    for form, options in (
      ('t5x', {}),
      ('t5x_orbax', {}),
      ('huggingface', {'max_file_bytes': 2000}),
      ('calm_jax', {}),
    )
  }


@pytest.fixture
def copy(whole, tmp_path):
  """Returns a copy of one of them that may be damaged."""

  def make(form):
    name = os.path.basename(whole[form])
    return pathlib.Path(shutil.copytree(whole[form], tmp_path / form / name))

  return make


def assert_refused(path, match, error=ValueError):
  with pytest.raises(error, match=match):
    checkpoints.load(path)


def edit_json(file, change):
  fields = json.loads(file.read_text())
  change(fields)
  file.write_text(json.dumps(fields))


def edit_msgpack(path, change):
  content = serialization.msgpack_restore((path / 'checkpoint').read_bytes())
  change(content['optimizer']['target'], content)
  (path / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))


def rewrite(path, change):
  """Changes the tensors of a folder of Hugging Face's, in one file."""
  opened = checkpoints.open_checkpoint(path)
  named = parameter_names.to_huggingface(opened.config, opened.tensors)
  tensors = {name: tensor.read() for name, tensor in named.items()}
  change(tensors)
  for file in path.glob('model*'):
    file.unlink()
  safetensors_files.write_file(
    path / 'model.safetensors',
    {name: in_memory(name, array) for name, array in tensors.items()},
  )


def test_t5x_chunks_and_files_that_are_missing_or_cut(copy):
  path = copy('t5x')
  (path / EMBEDDING / '0.0').unlink()
  # Opens, as a missing chunk shows only when it is read; and then it is not
  # taken for zeros.
  checkpoints.open_checkpoint(path)
  assert_refused(
    path, 'token_embedder/embedding in .* is missing in part or whole'
  )
  shutil.rmtree(path / EMBEDDING)
  assert_refused(
    path, 'token_embedder/embedding in .* is missing in part or whole'
  )
  path = path / 'checkpoint'
  path.write_bytes(path.read_bytes()[:-20])
  assert_refused(path.parent, 'checkpoint is no T5X checkpoint, or is cut')


def test_t5x_parameters_that_do_not_fit(copy):
  path = copy('t5x')

  def damage(target, _):
    decoder = target['decoder']
    decoder['layers_0']['mlp']['wo']['kernel'] = np.ones((9, 8), np.float32)
    decoder['layers_0']['adapter'] = {'scale': np.ones(8, np.float32)}
    del target['encoder']['encoder_norm']

  edit_msgpack(path, damage)
  assert_refused(path, r'mlp/wo/kernel: expected \(10, 8\), found \(9, 8\)')
  assert_refused(path, r'adapter/scale: expected nothing, found \(8,\)')
  assert_refused(path, r'encoder_norm/scale: expected \(8,\), found nothing')


def test_t5x_arrays_of_another_checkpoint(copy):
  path = copy('t5x')
  kernel = path / 'target.decoder.logits_dense.kernel'
  shutil.rmtree(path / EMBEDDING)
  shutil.copytree(kernel, path / EMBEDDING)
  assert_refused(
    path, r'embedding in .* has shape \(8, 20\) on disk, and \(20, 8\)'
  )


@pytest.mark.parametrize(
  'place', ['../../secret/', '/etc/', 'a/../../b/', 'file:///etc/']
)
def test_t5x_paths_that_lead_out(copy, place):
  path = copy('t5x')

  def redirect(target, _):
    target['token_embedder']['embedding']['kvstore']['path'] = place

  edit_msgpack(path, redirect)
  assert_refused(path, 'not a path inside the checkpoint')


def test_t5x_of_other_versions(copy):
  path = copy('t5x')
  edit_msgpack(path, lambda _, content: content.update(version=1))
  assert_refused(path, 'version 1; versions')


@pytest.mark.parametrize(
  'state', [[], {'step': 'many'}, {'step': np.zeros(3)}], ids=str
)
def test_t5x_states_that_make_no_sense(copy, state):
  path = copy('t5x')
  edit_msgpack(
    path, lambda _, content: content['optimizer'].update(state=state)
  )
  assert_refused(
    path, 'checkpoint_7/checkpoint is no T5X checkpoint, or is cut'
  )
  edit_msgpack(
    path,
    lambda _, content: content.update(optimizer={'target': [], 'state': {}}),
  )
  assert_refused(path, 'parameters are a list')


@pytest.mark.parametrize(
  'form, file',
  [
    ('huggingface', 'config.json'),
    ('huggingface', 'model.safetensors.index.json'),
    ('t5x_orbax', 'state/_METADATA'),
    ('calm_jax', 'metadata/metadata'),
  ],
)
def test_brackets_without_end_are_no_json(copy, form, file):
  path = copy(form)
  (path / file).write_bytes(b'[' * 200_000)
  assert_refused(path, f'{path}.*recursion')


def test_headers_of_brackets_without_end(copy):
  path = copy('huggingface')
  header = b'[' * 200_000
  file = next(path.glob('*.safetensors'))
  file.write_bytes(len(header).to_bytes(8, 'little') + header)
  assert_refused(path, f'{file.name} has a damaged header')


def test_more_layers_than_there_can_be_are_not_counted(copy):
  """Their names alone would fill the memory."""
  many = 10**9
  path = copy('t5x')
  edit_msgpack(
    path,
    lambda target, _: target['decoder'].update(
      {f'layers_{many}': target['decoder']['layers_0']}
    ),
  )
  assert_refused(path, f'said to have {many + 2} layers')
  for form, file, name in (
    ('huggingface', 'config.json', 'num_layers'),
    ('calm_jax', 'metadata/metadata', 'num_encoder_layers'),
  ):
    path = copy(form)

    def exaggerate(fields, name=name):
      fields.get('model_config', fields)[name] = many

    edit_json(path / file, exaggerate)
    assert_refused(path, f'said to have {many + 1} layers')


def test_descriptions_that_are_no_objects(copy):
  path = copy('calm_jax')
  (path / 'metadata' / 'metadata').write_text('[]')
  assert_refused(path, 'metadata holds no JSON object')
  with pytest.raises(ValueError, match='metadata holds no JSON object'):
    checkpoints.load_params(path)


def test_half_a_classifier(copy):
  path = copy('t5x')
  edit_msgpack(
    path,
    lambda target, _: target['decoder'].update(
      meta_cls={'kernel': np.ones((8, 2), np.float32)}
    ),
  )
  assert_refused(path, 'meta_cls/bias should have 1 dimensions.*found nothing')


def test_orbax_damage(copy):
  path = copy('t5x_orbax')
  for file in path.glob('state/**/d/*'):
    file.write_bytes(file.read_bytes()[:10])
  assert_refused(path, 'in .*state (cannot be read|is missing)')
  edit_json(
    path / 'state' / '_METADATA',
    lambda fields: fields['tree_metadata'].clear(),
  )
  assert_refused(path, "has no 'target'")
  (path / 'state' / '_METADATA').write_text('{"tree')
  assert_refused(path, '_METADATA is damaged')


def test_our_own_form_must_have_its_fingerprint(copy):
  path = copy('calm_jax')
  edit_json(
    path / 'metadata' / 'metadata',
    lambda fields: fields.update(parameter_fingerprint='0' * 32),
  )
  assert_refused(path, 'were saved with 0000')
  target = checkpoints.Target(format='t5x')
  with pytest.raises(ValueError, match='were saved with 0000'):
    checkpoints.convert(
      checkpoints.open_checkpoint(path), path.parent / 'out', target
    )
  assert os.listdir(path.parent / 'out') == []
  (path / '_CHECKPOINT_METADATA').unlink()
  assert_refused(path, 'never completed')


def test_huggingface_files_that_are_missing_or_cut(copy):
  path = copy('huggingface')
  first, second, *_ = sorted(path.glob('model-*.safetensors'))
  whole = first.read_bytes()
  first.write_bytes(whole[:-1])
  assert_refused(path, 'shorter than it says')
  first.write_bytes(b'version https://git-lfs.github.com/spec/v1')
  assert_refused(path, 'no safetensors file.*Git LFS')
  first.write_bytes(whole[:8] + b'x' * 20 + whole[28:])
  assert_refused(path, 'damaged header')
  first.write_bytes(second.read_bytes())
  assert_refused(path, 'does not have it')
  first.unlink()
  assert_refused(path, f'there is no {first.name}', FileNotFoundError)


def test_huggingface_indexes_that_lead_out(copy, tmp_path):
  path = copy('huggingface')
  shutil.copy(path / 'config.json', tmp_path / 'outside.safetensors')
  for place in ('../../outside.safetensors', str(tmp_path / 'outside')):
    edit_json(
      path / 'model.safetensors.index.json',
      lambda fields, place=place: fields['weight_map'].update(
        {'shared.weight': place}
      ),
    )
    assert_refused(path, 'not a path inside the checkpoint')


def test_huggingface_parameters_that_do_not_fit(copy):
  path = copy('huggingface')

  def change(tensors):
    tensors['encoder.adapter.weight'] = np.ones(3, np.float32)
    del tensors['encoder.block.0.layer.1.DenseReluDense.wo.weight']

  rewrite(path, change)
  assert_refused(path, r'adapter.weight: expected nothing, found \(3,\)')
  assert_refused(
    path, r'1.DenseReluDense.wo.weight: expected \(8, 10\), found noth'
  )


@pytest.mark.parametrize(
  ('field', 'value', 'match'),
  [
    ('vocab_size', 24, r'shared.weight: expected \(24, 8\), found \(20, 8\)'),
    ('num_layers', 2, 'encoder.block.1.*found nothing'),
    ('d_model', 'wide', "embed_dim 'wide' must be a whole number at least 1"),
    ('model_type', 'umt5', "type 'umt5'.*relative positions of its own"),
    ('model_type', 'bert', "type 'bert'"),
    ('feed_forward_proj', 'gelu', "feed_forward_proj 'gelu' is not one of"),
    ('layer_norm_epsilon', 1e-5, 'layer_norm_epsilon is 1e-05'),
    ('decoder_start_token_id', 2, 'decoder_start_token_id is 2'),
  ],
)
def test_huggingface_configurations(copy, field, value, match):
  path = copy('huggingface')
  edit_json(path / 'config.json', lambda fields: fields.update({field: value}))
  assert_refused(path, match)


def test_integers_and_wrong_sizes_are_no_parameters(copy):
  path = copy('huggingface')
  rewrite(path, lambda tensors: None)
  file = path / 'model.safetensors'
  whole = file.read_bytes()
  file.write_bytes(whole.replace(b'"F32"', b'"I32"', 1))
  assert_refused(path, 'has dtype I32; parameters must be one of')
  file.write_bytes(whole.replace(b'[20,8]', b'[21,8]', 1))
  assert_refused(path, r'has shape \(21, 8\) and 640 bytes')


def test_values_that_are_not_numbers(copy, tmp_path):
  path = copy('huggingface')
  name = 'decoder.block.0.layer.0.SelfAttention.k.weight'

  def spoil(tensors):
    tensors[name] = tensors[name].copy()
    tensors[name][2, 3:5] = np.nan, np.inf

  rewrite(path, spoil)
  ours = 'decoder/layers_0/self_attention/key/kernel'
  assert_refused(path, f'{ours} of .* holds 2 values that are NaN or infinite')
  params = checkpoints.load(path, allow_nonfinite=True).params
  kernel = parameter_names.flattened(params)[ours]
  assert np.isnan(kernel[3, 2]) and np.isinf(kernel[4, 2])
  source = checkpoints.open_checkpoint(path)
  with pytest.raises(ValueError, match=f'{ours} of .* NaN'):
    checkpoints.convert(source, tmp_path, checkpoints.Target(format='t5x'))
  target = checkpoints.Target(format='t5x', allow_nonfinite=True)
  assert checkpoints.convert(source, tmp_path, target).num_tensors == 29
  # float32 that float16 cannot hold becomes infinite, which is no parameter.
  big = cases.opened(cases.SMALL)
  big.tensors['encoder/encoder_norm/scale'] = in_memory(
    'encoder/encoder_norm/scale', np.full(8, 1e6, np.float32)
  )
  target = checkpoints.Target(format='huggingface', dtype='float16')
  with pytest.raises(ValueError, match='cast to float16, holds 8 values'):
    checkpoints.convert(big, tmp_path / 'half', target)
  assert not (tmp_path / 'half').exists()


def test_formats_that_are_not_read(tmp_path):
  mesh = tmp_path / 'mesh'
  mesh.mkdir()
  assert_refused(mesh, 'there is nothing', FileNotFoundError)
  (mesh / 'model.ckpt-0.index').write_bytes(b'')
  assert_refused(mesh, 'Mesh TensorFlow.*convert_tf_checkpoint')
  (mesh / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-0"')
  assert_refused(mesh, 'Mesh TensorFlow')
  pickled = tmp_path / 'pickled'
  pickled.mkdir()
  (pickled / 'config.json').write_text('{"model_type": "t5"}')
  assert_refused(pickled, 'neither model.safetensors nor', FileNotFoundError)
  (pickled / 'pytorch_model.bin').write_bytes(b'')
  assert_refused(pickled, 'pytorch_model.bin.*can run code.*save_pretrained')
  for name, match in (
    ('pytorch_model.bin', 'give its folder'),
    ('spiece.model', 'is a vocabulary; give the folder'),
    ('epoch=3.ckpt', 'pickled by PyTorch.*save_pretrained'),
    ('model.ckpt-100', 'Mesh TensorFlow'),
  ):
    (pickled / name).write_bytes(b'')
    assert_refused(pickled / name, match)
  assert_refused(tmp_path / 'nowhere', 'there is nothing', FileNotFoundError)
  assert_refused('nonsense://there', 'cannot open nonsense')


def test_targets(whole, tmp_path):
  source = checkpoints.open_checkpoint(whole['t5x'])
  target = checkpoints.Target(format='t5x')
  with pytest.raises(FileExistsError, match='checkpoint_7 is there already'):
    checkpoints.convert(source, os.path.dirname(whole['t5x']), target)
  with pytest.raises(ValueError, match='gcloud storage cp'):
    checkpoints.convert(source, 'gs://bucket/there', target)
  for arguments, match in (
    (dict(format='onnx'), "got 'onnx'"),
    (dict(format='t5x', dtype='int8'), "got 'int8'"),
    (dict(format='huggingface', stacked=True), 'stacked layers'),
    (dict(format='calm_jax', dtype='bfloat16'), 'float32 parameters'),
  ):
    with pytest.raises(ValueError, match=match):
      checkpoints.Target(**arguments)
  with pytest.raises(ValueError, match='does not fit'):
    checkpoints.from_params({'encoder': {}}, cases.SMALL)

"""What lies in a folder of Hugging Face's: used, honoured, told or refused."""

import json
import shutil

import numpy as np
import pytest
from cases import checkpoint_cases as cases

from calm_jax import checkpoints
from calm_jax.checkpoints import parameter_names, safetensors_files
from calm_jax.checkpoints.huggingface_generation import GenerationRules
from calm_jax.checkpoints.stored_tensors import BFLOAT16, in_memory


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A sound folder, which transformers could have written."""
  path = tmp_path_factory.mktemp('whole') / 'hf'
  cases.write(cases.SMALL, path, 'huggingface')
  return path


@pytest.fixture
def folder(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'hf')


def edit(path, name, **fields):
  """Changes fields of a file of JSON, which is made if it is not there."""
  file = path / name
  there = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(there | fields))


def rewrite(path, change, *, name='model.safetensors'):
  """Changes the tensors of a folder; they go into one file."""
  opened = cases.opened(cases.SMALL)
  named = parameter_names.to_huggingface(opened.config, opened.tensors)
  tensors = {key: tensor.read() for key, tensor in named.items()}
  change(tensors)
  safetensors_files.write_file(
    path / name,
    {key: in_memory(key, array) for key, array in tensors.items()},
  )


def opened(path):
  return checkpoints.open_checkpoint(path)


def assert_refused(path, match, error=ValueError):
  with pytest.raises(error, match=match):
    checkpoints.open_checkpoint(path)


def test_nothing_is_noted_of_a_plain_folder(folder):
  found = opened(folder)
  assert (found.notes, found.generation) == ((), GenerationRules())
  assert found.texts == checkpoints.TextFacts()


@pytest.mark.parametrize('file', ['config.json', 'generation_config.json'])
@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('eos_token_id', 2),
    ('eos_token_id', [1, 7]),
    ('pad_token_id', 3),
    ('decoder_start_token_id', 2),
  ],
)
def test_other_ids_are_refused_wherever_they_stand(folder, file, field, value):
  edit(folder, file, **{field: value})
  assert_refused(folder, f'{file}: {field} is .*; here .* is not read')


def test_ids_that_say_the_same_are_taken(folder):
  edit(folder, 'generation_config.json', eos_token_id=[1, 1], pad_token_id=None)
  assert opened(folder).notes == ()
  fields = {'decoder_start_token_id': None, 'bos_token_id': 4}
  edit(folder, 'generation_config.json', **fields)
  assert_refused(folder, 'bos_token_id is 4.*decoder starts from it')


@pytest.mark.parametrize('file', ['config.json', 'generation_config.json'])
def test_rules_are_honoured_or_told(folder, file):
  """Without a generation_config.json, those of config.json count."""
  (folder / 'generation_config.json').unlink()
  edit(
    folder,
    file,
    suppress_tokens=[9, 5],
    bad_words_ids=[[7], [1], [3, 4]],
    forced_bos_token_id=6,
    num_beams=4,
    no_repeat_ngram_size=3,
    min_length=0,
    task_specific_params={'summarization': {'prefix': 'summarize: '}},
  )
  found = opened(folder)
  # The end of a text stays sayable, as in transformers.
  assert found.generation == GenerationRules((5, 7, 9), (6,))
  said = '\n'.join(found.notes)
  for part in ('[5, 7, 9]', 'token 6', 'several tokens', 'num_beams (4)'):
    assert part in said
  assert 'no_repeat_ngram_size (3)' in said and 'summarize: ' in said
  assert 'min_length' not in said and len(found.notes) == 6
  edit(folder, file, suppress_tokens=[20])
  assert_refused(folder, 'suppress_tokens holds 20, which is no token')


def test_tokens_that_were_added_are_told(folder):
  edit(folder, 'added_tokens.json', **{'<sep>': 18, '<extra_id_0>': 17})
  edit(folder, 'tokenizer_config.json', tokenizer_class='T5Tokenizer')
  (folder / 'tokenizer.json').write_text(
    json.dumps({'added_tokens': [{'id': 19, 'content': '<end>'}]})
  )
  found = opened(folder)
  assert found.texts.added == {'<sep>': 18, '<end>': 19}
  assert found.texts.extra_ids == 1 and found.texts.is_bytes is False
  assert "2 tokens were added to the vocabulary ('<sep>' 18" in found.notes[0]
  # Parameters are loaded whatever the tokenizer's files say.
  (folder / 'tokenizer.json').write_text('[')
  assert 'tokenizer.json is left aside' in '\n'.join(opened(folder).notes)


def test_two_layouts_side_by_side(folder, tmp_path):
  cases.write(cases.SMALL, tmp_path / 'b', 'huggingface', max_file_bytes=2000)
  for file in (tmp_path / 'b').glob('model*'):
    shutil.copy(file, folder)
  (folder / 'pytorch_model.bin').write_bytes(b'')
  same, others = opened(folder).notes
  assert 'its files hold the same' in same and 'pytorch_model.bin is' in others

  def double(tensors):
    tensors['shared.weight'] = 2 * tensors['shared.weight']

  rewrite(folder, double)
  assert_refused(folder, 'holds two models: .* differ in shared.weight')
  # What transformers would load is whole, the other is not.
  next(folder.glob('model-00001*')).unlink()
  found = opened(folder)
  assert 'its files are not' in found.notes[0]
  np.testing.assert_array_equal(
    found.tensors['token_embedder/embedding'].read(),
    2 * cases.arrays(cases.SMALL)['token_embedder/embedding'],
  )


def with_lora(tensors):
  name = 'encoder.block.0.layer.0.SelfAttention.q.weight'
  tensors[name.replace('q.', 'q.base_layer.')] = tensors.pop(name)


def encoder_alone(tensors):
  for name in list(tensors):
    if name.startswith(('decoder.', 'lm_head')):
      del tensors[name]


def with_classifier(tensors):
  tensors['classification_head.dense.weight'] = np.ones((8, 8), np.float32)


def wrapped(tensors):
  for name in list(tensors):
    tensors[f'module.{name}'] = tensors.pop(name)


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (with_lora, 'q.base_layer.weight: an adapter .*merge_and_unload'),
    (encoder_alone, 'an encoder and no decoder'),
    (with_classifier, 'classification_head.dense.weight: a classifier'),
    (wrapped, "begin with 'module.': a wrapper"),
  ],
)
def test_tensors_tell_what_else_was_saved(folder, change, match):
  rewrite(folder, change)
  assert_refused(folder, match)


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    ({'architectures': ['T5EncoderModel']}, r'encoder alone \(T5EncoderModel'),
    ({'is_encoder_decoder': False}, 'encoder alone'),
    ({'architectures': ['T5ForSequenceClassification']}, 'a classifier'),
    ({'quantization_config': {'bits': 8}}, 'dequantize'),
    ({'is_gated_act': False}, 'contradict each other'),
  ],
)
def test_config_json_tells_it_too(folder, fields, match):
  edit(folder, 'config.json', **fields)
  assert_refused(folder, match)


def test_adapters_beside_a_model_and_alone(folder, tmp_path):
  edit(folder, 'adapter_config.json', peft_type='LORA')
  assert_refused(folder, 'a model and an adapter.*merge_and_unload')
  (folder / 'config.json').unlink()
  assert_refused(folder, 'an adapter .*, not a model: merge')
  (folder / 'adapter_config.json').unlink()
  assert_refused(folder, 'model.safetensors and no config.json')
  for name, match in (
    ('checkpoint-500', 'give one, such as .*/checkpoint-500/'),
    ('snapshots', 'give one, such as .*snapshots/<COMMIT>/'),
  ):
    (tmp_path / name / name).mkdir(parents=True)
    assert_refused(tmp_path / name, match)
  (tmp_path / 'gguf').mkdir()
  (tmp_path / 'gguf' / 'flan-t5.gguf').write_bytes(b'')
  assert_refused(tmp_path / 'gguf', 'GGUF')


def test_a_copy_in_another_precision_is_a_copy(folder):
  def change(tensors):
    shared = tensors['shared.weight'].astype(BFLOAT16)
    tensors['encoder.embed_tokens.weight'] = tensors['shared.weight']
    tensors['decoder.embed_tokens.weight'] = shared.astype(np.float32)
    tensors['shared.weight'] = shared

  rewrite(folder, change)
  assert len(opened(folder).notes) == 2


@pytest.mark.parametrize(
  ('version', 'told', 'tied'),
  [('5.24.0', None, False), ('4.57.3', None, True), ('5.24.0', True, True)],
)
def test_tied_mt5_is_scaled_as_its_writer_did(folder, version, told, tied):
  edit(
    folder,
    'config.json',
    model_type='mt5',
    transformers_version=version,
    tie_word_embeddings=True,
    scale_decoder_outputs=told,
  )
  rewrite(folder, lambda tensors: tensors.pop('lm_head.weight'))
  found = opened(folder)
  assert found.config.tied_embeddings == tied
  if not tied:
    np.testing.assert_array_equal(
      found.tensors['decoder/logits_dense/kernel'].read(),
      found.tensors['token_embedder/embedding'].read().T,
    )
    assert 'logits are not scaled: transformers 5.24.0' in found.notes[0]


def test_a_model_without_its_output_matrix(folder):
  rewrite(folder, lambda tensors: tensors.pop('lm_head.weight'))
  edit(
    folder,
    'config.json',
    architectures=['T5Model'],
    scale_decoder_outputs=False,
  )
  assert_refused(folder, 'T5Model, which leaves the output matrix out')


def test_scaled_logits_are_not_written_as_mt5(tmp_path):
  with pytest.raises(ValueError, match="mT5 of transformers 5.*'t5'"):
    cases.write(cases.V1_0, tmp_path / 'm', 'huggingface', model_type='mt5')


@pytest.mark.parametrize('place', ['', 'checkpoint_7', 'parent'])
@pytest.mark.parametrize('form', ['huggingface', 't5x', 't5x_orbax'])
def test_a_run_was_expected(folder, tmp_path, form, place):
  """Whoever wants a run directory is told how to give such a checkpoint."""
  path = folder
  if form != 'huggingface':
    path = cases.write(cases.SMALL, tmp_path / form, form)
    path = tmp_path / form if place == 'parent' else path
  for load in (checkpoints.load_params, checkpoints.find_checkpoint):
    with pytest.raises(FileNotFoundError, match='not a run directory') as error:
      load(path)
    assert '--gin.generate.run.vocabulary=' in str(error.value)
    assert f'--source={path} --target=RUN --to=calm_jax' in str(error.value)

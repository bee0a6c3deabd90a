"""The paper's tasks over fake TFDS data: forms, disjoint splits, bad input."""

import dataclasses
import itertools

import numpy as np
import pytest
from tools.planned import train_batches

pytest.importorskip('seqio')
gin = pytest.importorskip('gin')

from calm_jax import data
from calm_jax.cli import gin_runner
from calm_jax.data.seqio import preprocessors, tfds_source
from calm_jax.data.seqio.tensorflow_setup import tf
from calm_jax.data.splits import normalised_input_hash

NAMES = ('cnn_dailymail', 'squad', 'wmt15_en_fr')


def definition_of(name, tfds_directory, vocabulary):
  """The definition that the shipped gin file makes."""
  bindings = {
    'DATA_DIR': tfds_directory,
    'VOCABULARY': vocabulary,
    'EXTRA_IDS': 3,
  }
  gin_runner.parse(
    [f'tasks/{name}.gin'],
    [f'{macro} = {value!r}' for macro, value in bindings.items()],
  )
  made = gin.config.query_parameter('%TASK').scoped_configurable_fn()
  gin.clear_config()
  return made


@pytest.fixture(scope='module')
def definitions(tfds_directory, jsonl_files):
  _, vocabulary = jsonl_files
  return {
    name: definition_of(name, tfds_directory, vocabulary) for name in NAMES
  }


def rows_of(definition, split, **options):
  dataset = definition.register().source.get_dataset(
    split, **{'shuffle': False, **options}
  )
  return list(dataset.as_numpy_iterator())


def inputs_of(definition, split, **options):
  rows = rows_of(definition, split, **options)
  return [row['inputs'].decode() for row in rows]


@pytest.mark.parametrize('name', NAMES)
def test_splits_share_no_input_and_hold_each_once(definitions, name):
  definition = definitions[name]
  inputs = {split: inputs_of(definition, split) for split in definition.splits}
  assert set(inputs) == {'train', 'validation', 'calibration', 'test'}
  hashes = {
    split: [normalised_input_hash(text) for text in texts]
    for split, texts in inputs.items()
  }
  for split in ('validation', 'calibration', 'test'):
    assert len(set(hashes[split])) == len(hashes[split]) >= 5
  for one, other in itertools.combinations(hashes.values(), 2):
    assert not set(one) & set(other)
  sizes = {split: len(texts) for split, texts in inputs.items()}
  held_out = sizes['validation'] + sizes['calibration'] + sizes['test']
  assert (sizes['train'], held_out) == {
    # Two train rows were held-out inputs; one test article was in validation.
    'cnn_dailymail': (38, 15 + 29),
    # One question occurs twice, two have no answer.
    'squad': (58, 90 - 3),
    # Two train rows lack a side.
    'wmt15_en_fr': (49, 12 + 40),
  }[name]
  assert (
    sizes['validation']
    == {
      'cnn_dailymail': 15,
      'squad': sizes['validation'],
      'wmt15_en_fr': 12,
    }[name]
  )


@pytest.mark.slow
def test_rows_that_no_split_has_are_counted_and_told_once(definitions, capfd):
  """Those that `tfds_fakes` says it plants."""
  said = {
    'cnn_dailymail': [
      'cnn_dailymail:3.4.0: calibration and test: of 30 rows 1 have inputs of '
      'another split (dropped)',
      'cnn_dailymail:3.4.0: train: of 40 rows 2 have inputs of another split '
      '(dropped)',
    ],
    'squad': [
      'squad/v1.1:3.0.0: validation and calibration and test: of 90 rows 2 lack'
      ' an input or a target (dropped), 1 repeat an input of it (merged)',
      'squad/v1.1:3.0.0: train: of 60 rows 2 have inputs of another split '
      '(dropped)',
    ],
    'wmt15_en_fr': [
      'wmt15_translate/fr-en:1.0.0: train: of 51 rows 2 lack an input or a '
      'target (dropped)',
    ],
  }
  for name, lines in said.items():
    definition = dataclasses.replace(definitions[name], name=f'{name}_told')
    source = definition.register().source
    capfd.readouterr()

    def told(source=source):
      found = capfd.readouterr().err.splitlines()
      return [line for line in found if line.startswith(source._dataset)]

    # One that is left before its end knows nothing of the rest.
    next(source.get_dataset('train', shuffle=False).as_numpy_iterator())
    assert told() == lines[:-1]
    dataset = source.get_dataset('train', shuffle=True, seed=1)
    for expected in (lines[-1:], []):
      list(dataset.as_numpy_iterator())
      list(source.get_dataset('test', shuffle=False).as_numpy_iterator())
      assert told() == expected


def test_questions_have_t5s_form_and_all_answers(definitions):
  rows = [
    row
    for split in ('validation', 'calibration', 'test')
    for row in rows_of(definitions['squad'], split)
  ]
  by_input = {row['inputs'].decode(): row for row in rows}
  row = by_input[
    'question: What is " black apple " , number 153 ?  context: '
    'A black apple ; that is 153 . '
  ]
  assert row['targets'] == b'red'
  answers = ['red', 'red apple', 'the U . S . ']
  assert preprocessors.unpack_references(row) == answers
  twin = next(row for text, row in by_input.items() if 'number 100 ' in text)
  assert preprocessors.unpack_references(twin) == [*answers, 'blue']


def test_questions_can_keep_their_punctuation(definitions):
  definition = dataclasses.replace(
    definitions['squad'],
    name='squad_plain',
    form=data.QuestionAnswering(space_punctuation=False),
  )
  assert (
    'question: What is "red red", number 0? context: A red red; that is 0.'
    in inputs_of(definition, 'train')
  )


def test_summaries_survive_quotes_backslashes_and_newlines(definitions):
  definition = definitions['cnn_dailymail']
  for split in ('train', 'test'):
    rows = rows_of(definition, split)
    for row in rows:
      number = int(row['inputs'].split()[1].rstrip(b':'))
      expected = row['targets'].decode()
      assert expected.endswith(f'\nC:\\{number} \\" .')
      assert preprocessors.unpack_references(row) == [expected]


@pytest.mark.parametrize(
  'name, prefix',
  [
    ('cnn_dailymail', 'summarize: News '),
    ('squad', 'question: What '),
    ('wmt15_en_fr', 'translate English to French: A '),
  ],
)
def test_batches_hold_t5s_prefixes(definitions, name, prefix):
  definition = definitions[name]
  for batch in data.eval_batches(definition, 4, split='test'):
    assert all(text.startswith(prefix) for text in batch['inputs_text'])
  if name == 'wmt15_en_fr':
    assert all(text.startswith('Une ') for text in batch['targets_text'])
  assert data.prefix_of(definition) in prefix


def test_held_out_order_does_not_depend_on_who_asks(definitions):
  definition = definitions['squad']
  again = dataclasses.replace(definition, name='squad_again')
  for split in ('validation', 'calibration', 'test'):
    assert inputs_of(definition, split) == inputs_of(again, split)
  shuffled = inputs_of(definition, 'test', shuffle=True, seed=1)
  assert shuffled != inputs_of(definition, 'test')
  assert sorted(shuffled) == sorted(inputs_of(definition, 'test'))


def test_registering_reads_no_rows(definitions, monkeypatch):
  definition = dataclasses.replace(definitions['squad'], name='squad_lazy')

  def refuse(*arguments, **options):
    raise AssertionError('rows were read')

  monkeypatch.setattr(tfds_source.seqio.TfdsDataSource, 'get_dataset', refuse)
  task = definition.register()
  assert set(task.splits) == {'train', 'validation', 'calibration', 'test'}
  with pytest.raises(AssertionError, match='rows were read'):
    inputs_of(definition, 'train')


@pytest.mark.slow
@pytest.mark.parametrize('shuffle_buffer', [None, 7])
def test_training_in_memory_and_streamed(definitions, shuffle_buffer):
  def batches(**options):
    return (
      batch['encoder_input_tokens']
      for batch in train_batches(
        definitions['wmt15_en_fr'],
        4,
        shuffle_buffer=shuffle_buffer,
        length_buckets=(),
        **options,
      )
    )

  # Two epochs and half a third one, in 13 batches each.
  first = list(itertools.islice(batches(seed=1), 30))
  rest = itertools.islice(batches(seed=1, skip=15), 15)
  for one, other in zip(first[15:], rest, strict=True):
    np.testing.assert_array_equal(one, other)
  rows = [tuple(row) for batch in first for row in batch]
  epochs = [rows[:49], rows[49:98]]
  assert set(epochs[0]) == set(epochs[1]) and len(set(epochs[0])) == 49
  assert epochs[0] != epochs[1]
  assert not np.array_equal(first[0], next(batches(seed=2)))


def test_missing_data_names_set_folder_and_command(
  definitions, tmp_path, monkeypatch
):
  definition = dataclasses.replace(
    definitions['squad'], name='squad_missing', directory=str(tmp_path)
  )
  with pytest.raises(FileNotFoundError) as raised:
    definition.register()
  message = str(raised.value)
  assert 'squad/v1.1:3.0.0' in message and str(tmp_path) in message
  assert 'download_and_prepare' in message
  # Nothing was begun there.
  assert not list(tmp_path.iterdir())
  # The folder of TFDS itself is where one looks without a directory.
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'default'))
  with pytest.raises(FileNotFoundError, match='default'):
    dataclasses.replace(definition, directory='').register()


def test_bad_definitions_are_named(definitions):
  replace = dataclasses.replace
  squad = definitions['squad']
  with pytest.raises(ValueError, match='no train split'):
    replace(squad, splits={'test': 'validation'})
  with pytest.raises(ValueError, match=r"unknown splits \['dev'\]"):
    replace(squad, splits={**squad.splits, 'dev': 'validation'})
  with pytest.raises(ValueError, match="reads 'train' for train and"):
    replace(squad, splits={**squad.splits, 'test': 'train'})
  with pytest.raises(ValueError, match='meteor'):
    replace(squad, metrics=('meteor',))
  with pytest.raises(ValueError, match='names no version'):
    replace(squad, name='squad_bad', dataset='squad/v1.1').register()
  with pytest.raises(ValueError, match="reads the split 'dev'"):
    replace(
      squad, name='squad_bad', splits={'train': 'train', 'test': 'dev'}
    ).register()
  squad.register()
  with pytest.raises(ValueError, match='registered already'):
    replace(squad, prefix='other: ').register()


def test_slices_of_train_can_be_held_out(definitions):
  definition = dataclasses.replace(
    definitions['squad'],
    name='squad_slices',
    splits={'train': 'train[:80%]', 'test': 'train[80%:]'},
  )
  train, test = (inputs_of(definition, split) for split in ('train', 'test'))
  assert len(train) in (47, 48) and len(test) in (11, 12)
  assert not set(train) & set(test)


def test_a_split_that_others_took_whole_says_so(definitions):
  definition = dataclasses.replace(
    definitions['wmt15_en_fr'],
    name='wmt_overlap',
    # The slice's rows belong to validation, which is read first.
    splits={'train': 'train', 'validation': 'test', 'test': 'test[:50%]'},
  )
  with pytest.raises(ValueError, match="Split 'test' of wmt15.* has no rows"):
    inputs_of(definition, 'test')


def test_packed_references_equal_those_of_python():
  texts = ['a "b"', 'c\\d', 'e\nf', '\\"', 'é', '']
  packed = preprocessors.pack_reference_tensor(tf.constant(texts)).numpy()
  assert preprocessors.unpack_references({'references': packed}) == texts

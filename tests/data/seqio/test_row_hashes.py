"""Rows that a run has seen: hashed without prefix, stored, refused."""

import numpy as np
import pytest

pytest.importorskip('seqio')

from calm_jax import data, records
from calm_jax.data.splits import normalised_input_hash


@pytest.fixture(scope='module')
def definition(jsonl_files):
  paths, vocabulary = jsonl_files
  return data.JsonlTask('row_hashes', paths, vocabulary, prefix='do: ')


def test_hashes_are_of_inputs_without_prefix(definition):
  rows = definition.read_splits()['train']
  hashes = data.input_hashes(definition, 'train')
  assert hashes.dtype == np.uint64 and (np.diff(hashes) > 0).all()
  assert hashes.tolist() == sorted(
    {normalised_input_hash(row.inputs) for row in rows}
  )


def test_max_examples_are_those_of_eval_batches(definition):
  (batch,) = data.eval_batches(definition, 9, split='test', max_examples=9)
  texts = [text.removeprefix('do: ') for text in batch['inputs_text']]
  hashes = data.input_hashes(definition, 'test', max_examples=9)
  assert hashes.tolist() == sorted(map(normalised_input_hash, texts))


def test_tasks_made_elsewhere_are_hashed_as_read(definition):
  task = definition.register()
  foreign = task.replace(name='row_hashes_foreign')
  expected = sorted(
    normalised_input_hash('do: ' + row.inputs)
    for row in definition.read_splits()['test']
  )
  assert data.input_hashes(foreign, 'test').tolist() == expected


def test_bad_arguments(definition):
  with pytest.raises(ValueError, match="no split 'dev'"):
    data.input_hashes(definition, 'dev')
  with pytest.raises(ValueError, match='max_examples is 0'):
    data.input_hashes(definition, 'test', max_examples=0)


@pytest.fixture
def rows(definition, tmp_path):
  path = tmp_path / 'run' / 'training_rows.npz'
  records.write_training_rows(
    path,
    data.input_hashes(definition, 'train'),
    data.input_hashes(definition, 'validation'),
  )
  return records.read_training_rows(path)


def test_files_hold_what_was_written(definition, rows, tmp_path):
  np.testing.assert_array_equal(
    rows.trained, data.input_hashes(definition, 'train')
  )
  np.testing.assert_array_equal(
    rows.selected, data.input_hashes(definition, 'validation')
  )
  path = tmp_path / 'unsorted.npz'
  records.write_training_rows(path, [2**64 - 1, 3, 3], [])
  read = records.read_training_rows(path)
  assert read.trained.tolist() == [3, 2**64 - 1]
  assert read.selected.dtype == np.uint64 and not read.selected.size


def test_fresh_splits_pass(definition, rows):
  for split in ('calibration', 'test'):
    batches = list(data.eval_batches(definition, 8, split=split))
    examples = definition.read_splits()[split]
    assert sum(batch['num_valid'] for batch in batches) == len(examples) > 0
    # Neither raises.
    assert data.refuse_training_rows(batches, rows, prefix='do: ') is None
    assert data.refuse_training_rows(examples, rows) is None


def test_seen_rows_are_counted_and_quoted(definition, rows):
  splits = definition.read_splits()
  batches = data.eval_batches(definition, 8, split='train')
  with pytest.raises(ValueError, match=r'200 of 200 .*\(200 trained on, 0 '):
    data.refuse_training_rows(batches, rows, prefix='do: ')
  seen = splits['validation'][4].inputs
  texts = [
    *(row.inputs for row in splits['test']),
    # Equal after normalisation.
    f'  {seen.upper()} ',
    splits['train'][0].inputs,
  ]
  with pytest.raises(ValueError, match='2 of ') as raised:
    data.refuse_training_rows(texts, rows)
  message = str(raised.value)
  assert '1 trained on, 1 selected on' in message
  assert repr(splits['train'][0].inputs[:80]) in message
  assert (
    seen.upper()[:20] in message and splits['test'][0].inputs not in message
  )


def test_damaged_files_are_named(rows, tmp_path):
  path = tmp_path / 'rows.npz'
  records.write_training_rows(path, np.arange(500, dtype=np.uint64), [1])
  whole = path.read_bytes()
  for damaged in (whole[: len(whole) // 2], b'', b'not a zip'):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='rows.npz does not hold'):
      records.read_training_rows(path)
  np.savez(path, trained=np.zeros(3))
  with pytest.raises(ValueError, match='rows.npz does not hold'):
    records.read_training_rows(path)
  np.savez(path, trained=np.zeros(3), selected=np.zeros(3, np.uint64))
  with pytest.raises(ValueError, match='trained has dtype float64'):
    records.read_training_rows(path)
  with pytest.raises(FileNotFoundError):
    records.read_training_rows(tmp_path / 'none.npz')

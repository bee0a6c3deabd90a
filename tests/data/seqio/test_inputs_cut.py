"""An input that is too long is the same input wherever it comes in."""

import collections

import numpy as np
import pytest
from tools.planned import train_batches

pytest.importorskip('seqio')

from calm_jax import data, tokenizer, training
from calm_jax.data.seqio import batches, tasks
from calm_jax.data.seqio.token_datasets import tokenised_examples
from calm_jax.pipeline import requests

S, T = 9, 6
LENGTHS = {'inputs': S, 'targets': T}


@pytest.fixture(scope='module')
def task(jsonl_files):
  paths, vocabulary = jsonl_files
  return tasks.JsonlTask('inputs_cut', paths, vocabulary)


@pytest.fixture(scope='module')
def whole(task):
  """The split's inputs and targets, uncut."""
  return list(tokenised_examples(task, 'train'))


def counted(rows):
  """Multiset of rows without their padding."""
  return collections.Counter(
    tuple(np.trim_zeros(row, 'b').tolist()) for row in rows
  )


def expected(whole, form):
  return counted(
    tokenizer.cut_input(example['inputs'], S, form=form) for example in whole
  )


def packed_segments(batch):
  for row, ids in zip(
    batch['encoder_input_tokens'], batch['encoder_segment_ids'], strict=True
  ):
    for segment in range(1, ids.max() + 1):
      yield row[ids == segment]


def test_some_are_longer(whole):
  longer = [example for example in whole if len(example['inputs']) > S]
  assert 10 < len(longer) < len(whole)
  served = expected(whole, tokenizer.KEEPS_EOS)
  assert all(row[-1] == tokenizer.EOS_ID for row in served)
  assert served != expected(whole, tokenizer.LOSES_EOS)


@pytest.mark.slow
@pytest.mark.parametrize('form', tokenizer.FORMS)
def test_every_way_into_a_batch_cuts_alike(task, whole, form, tmp_path):
  options = dict(feature_lengths=LENGTHS, num_epochs=1, inputs_cut=form)
  wanted = expected(whole, form)

  def rows(made):
    return counted(
      row
      for batch in made
      for row in batch['encoder_input_tokens']
      if row.any()
    )

  for more in ({}, {'shuffle_buffer': 20}):
    assert rows(train_batches(task, 8, **options, **more)) == wanted, more
  assert (
    rows(
      batches.eval_batches(
        task, 8, feature_lengths=LENGTHS, split='train', inputs_cut=form
      )
    )
    == wanted
  )
  packed = train_batches(task, 8, pack=True, **options)
  found = counted(s for batch in packed for s in packed_segments(batch))
  # Rows of a last batch that is not full are dropped by seqio's packing.
  assert not found - wanted
  if form == tokenizer.KEEPS_EOS:
    training.write_npz(tmp_path / 'train.npz', whole)
    npz = training.npz_batches(
      tmp_path / 'train.npz', 8, feature_lengths=LENGTHS, num_epochs=1
    )
    assert rows(npz) == wanted


def test_seqio_and_serving_cut_as_batches_do(task, whole):
  """seqio's Evaluator and T5X read a Task with the lengths of its features."""
  wanted = expected(whole, tokenizer.KEEPS_EOS)
  trimmed = task.register().get_dataset(LENGTHS, 'train', shuffle=False)
  assert counted(row['inputs'] for row in trimmed.as_numpy_iterator()) == wanted
  ours = data.tokenizer_of(task.register().output_features['inputs'].vocabulary)
  served = [
    requests.encode(
      0,
      row.inputs,
      ours,
      name='input',
      input_length=S,
      max_length=T,
      too_long='truncate',
    ).tokens
    for row in task.read_splits()['train']
  ]
  assert counted(map(np.array, served)) == wanted


def test_targets_that_are_cut_teach_no_end(task):
  made = train_batches(task, 8, feature_lengths=LENGTHS, num_epochs=1)
  ends = np.concatenate([b['decoder_target_tokens'][:, -1] for b in made])
  assert (ends > tokenizer.EOS_ID).any()


def test_inputs_without_an_end_get_none(jsonl_files):
  """Of a Task made elsewhere."""
  paths, vocabulary = jsonl_files
  seqio = pytest.importorskip('seqio')
  made = tasks.JsonlTask('input_cut_bare', paths, vocabulary).register()
  feature = seqio.Feature(
    made.output_features['inputs'].vocabulary, add_eos=False
  )
  bare = seqio.TaskRegistry.add(
    'input_cut_without_eos',
    source=made.source,
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={**made.output_features, 'inputs': feature},
  )
  for example in batches.eval_batches(
    bare, 8, feature_lengths=LENGTHS, split='validation'
  ):
    assert not (example['encoder_input_tokens'] == tokenizer.EOS_ID).any()

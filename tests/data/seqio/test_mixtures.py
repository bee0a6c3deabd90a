"""Mixtures: rates in training, every example once in evaluation."""

import collections
import itertools

import pytest
from tools.planned import train_batches

pytest.importorskip('seqio')

from calm_jax import data
from calm_jax.data.splits import normalised_input_hash

LENGTHS = {'inputs': 40, 'targets': 20}


@pytest.fixture(scope='module')
def parts(jsonl_files):
  paths, vocabulary = jsonl_files
  return [
    data.JsonlTask(f'mixed_{name}', paths, vocabulary, prefix=f'{name}: ')
    for name in ('a', 'b')
  ]


def drawn(mixture, count, **options):
  """How many rows of the first `count` batches begin as each part does."""
  vocabulary = data.as_task(mixture).output_features['inputs'].vocabulary
  iterator = train_batches(
    mixture, 8, feature_lengths=LENGTHS, length_buckets=(), **options
  )
  return collections.Counter(
    vocabulary.decode([int(token) for token in row if token])[0]
    for batch in itertools.islice(iterator, count)
    for row in batch['encoder_input_tokens']
  )


def test_training_draws_at_the_rates(parts):
  mixture = data.MixtureTask('three_to_one', parts, rates=(3, 1))
  counts = drawn(mixture, 50)
  assert sum(counts.values()) == 400
  # Mean 300, standard deviation 9.
  assert 265 <= counts['a'] <= 335
  assert drawn(mixture, 50) == counts


def test_rates_default_to_the_rows(parts):
  mixture = data.MixtureTask('by_rows', parts).register()
  assert [mixture.get_rate(task) for task in mixture.tasks] == [200, 200]


def test_skip_goes_on_in_a_mixture(parts):
  mixture = data.MixtureTask('skipped', parts, rates=(1, 1))

  def batches(count, **options):
    iterator = train_batches(mixture, 8, feature_lengths=LENGTHS, **options)
    return [
      batch['encoder_input_tokens'].tolist()
      for batch in itertools.islice(iterator, count)
    ]

  assert batches(20)[13:] == batches(7, skip=13)


def test_evaluation_reads_one_task_after_the_other(parts):
  mixture = data.MixtureTask('evaluated', parts, rates=(1, 5))
  rows = [
    (text, references)
    for task in (mixture, *parts)
    for batch in data.eval_batches(
      task, 7, feature_lengths=LENGTHS, split='test'
    )
    for text, references in zip(
      batch['inputs_text'], batch['references'], strict=True
    )
  ]
  half = len(rows) // 2
  assert half and rows[:half] == rows[half:]


def test_hashes_of_a_mixture_are_those_of_its_tasks(parts):
  mixture = data.MixtureTask('hashed', parts, rates=(1, 1))
  expected = sorted(
    {
      normalised_input_hash(row.inputs)
      for row in parts[0].read_splits()['test']
    }
  )
  # Both parts read the same files; the prefixes do not count.
  assert data.input_hashes(mixture, 'test').tolist() == expected


def test_bad_mixtures_are_named(parts, tmp_path, jsonl_files):
  with pytest.raises(ValueError, match='2 tasks and 1 rates'):
    data.MixtureTask('bad', parts, rates=(1,))
  with pytest.raises(ValueError, match='the rate 0'):
    data.MixtureTask('bad', parts, rates=(0, 1))
  with pytest.raises(ValueError, match='has no tasks'):
    data.MixtureTask('bad', ())
  with pytest.raises(ValueError, match='a task twice'):
    data.MixtureTask('bad', (parts[0], parts[0])).register()
  paths, vocabulary = jsonl_files
  foreign = data.JsonlTask('mixed_foreign', paths, vocabulary, extra_ids=2)
  with pytest.raises(ValueError, match='all tasks must share one'):
    data.MixtureTask('bad', (parts[0], foreign)).register()
  mixture = data.MixtureTask('good', parts, rates=(1, 1))
  with pytest.raises(ValueError, match='has no epochs'):
    train_batches(mixture, 4, num_epochs=1)
  with pytest.raises(ValueError, match='is a mixture'):
    next(data.tokenised_examples(mixture, 'train'))
  with pytest.raises(ValueError, match='speaks about one task'):
    data.run_calibration_task(
      mixture,
      predict=None,
      metric=None,
      batch_size=1,
      feature_lengths=LENGTHS,
      log_dir=str(tmp_path),
    )
  with pytest.raises(ValueError, match='registered already'):
    data.MixtureTask('good', parts, rates=(1, 2)).register()
